"""How often prediction sets and intervals cover, and how well outliers are recognized.

    python benchmarks/uncertainty.py runs/digits --unseen noise datasets/fashion/test datasets/textures/test
    python benchmarks/uncertainty.py runs/cifar --of test --splits 20 --mapie
    python benchmarks/uncertainty.py runs/tiles --of test   # several labels (benchmarks/tiles.py)

Coverage: the validation and test images of a run, which it was not trained on, are divided at random, half to
calibrate and half to test, several times. Printed are the mean and the range of the coverage, and the mean
size of a set; of several labels, which share of an image's labels the sets hold; of numbers, the width of the
intervals. Of one class an image, there is a row for each kind of set, "by the limit alone" is the coverage
without the most probable class where that is above the limit, and with --mapie there is the share of MAPIE's
sets (its score "lac") that are the same; its empty sets count as the most probable class alone.

Outliers: the run is calibrated as `skipnets calibrate` does it, on the first of these divisions. Printed are
for each unseen set the AUROC of each score, new images against unseen ones, and which share of both is
rejected with --reject 0.05. "chosen" is the score that calibration chose, without any of these sets. "noise"
is of random pixels; images of folders are taken whatever their classes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import skipnets
from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import Source
from skipnets.data.loading import evaluation_batches
from skipnets.evaluation import Evaluation, MultiLabelEvaluation, RegressionEvaluation, evaluate
from skipnets.evaluation.evaluating import calibration_images
from skipnets.evaluation.outliers import fit_outlier_detector
from skipnets.inputs import named_sources
from skipnets.probabilities import softmax
from skipnets.uncertainty import (
    CalibrationScores,
    OutlierDetector,
    OutlierScore,
    SetScore,
    class_scores,
    label_scores,
    label_sets,
    outlier_scores,
    prediction_intervals,
    prediction_sets,
)

_MOST = 500


def halves(count: int, seed: int) -> list[NDArray[np.int64]]:
    """Two random halves of so many images."""
    order = np.random.default_rng(seed).permutation(count)
    return np.split(order[: count // 2 * 2], 2)


def coverage_of_classes(
    evaluation: Evaluation, score: SetScore, *, share: float, splits: int, mapie: bool
) -> dict[str, object]:
    """Coverage and size of the sets of the half of the images that did not calibrate."""
    probabilities, labels = softmax(evaluation.logits), evaluation.labels
    of_classes = class_scores(probabilities, score)
    covered, alone, sizes, same = [], [], [], []
    for seed in range(splits):
        fitting, new = halves(len(labels), seed)
        scores = CalibrationScores.of(of_classes[fitting, labels[fitting]])
        sets = prediction_sets(probabilities[new], scores, share, score)
        covered.append(float(sets[np.arange(len(new)), labels[new]].mean()))
        alone.append(float((of_classes[new, labels[new]] <= scores.quantile(share)).mean()))
        sizes.append(float(sets.sum(1).mean()))
        if mapie and score == "lac":
            same.append(_same_as_mapie(probabilities, labels, fitting, new, sets, share))
    return {
        "kind": score,
        **summary(share, labels, covered),
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "by the limit alone": float(np.mean(alone)),
        "size": float(np.mean(sizes)),
        **({"equal to MAPIE's": float(np.mean(same))} if same else {}),
    }


def coverage_of_labels(evaluation: MultiLabelEvaluation, *, share: float, splits: int) -> dict[str, object]:
    """The share of an image's labels that the sets hold, of images that have one, and their size."""
    probabilities, present = evaluation.probabilities, evaluation.labels == 1
    held, sizes = [], []
    for seed in range(splits):
        fitting, new = halves(len(present), seed)
        scores = label_scores(probabilities[fitting], evaluation.labels[fitting])
        assert scores is not None
        sets, having = label_sets(probabilities[new], scores, share), present[new].any(1)
        shares = (sets & present[new]).sum(1)[having] / present[new].sum(1)[having]
        held.append(float(shares.mean()))
        sizes.append(float(sets.sum(1).mean()))
    return {"kind": "labels", **summary(share, present, held), "size": float(np.mean(sizes))}


def coverage_of_numbers(evaluation: RegressionEvaluation, *, share: float, splits: int) -> dict[str, object]:
    """How many intervals of the first target hold its number, and how wide they are."""
    known = np.flatnonzero(np.isfinite(evaluation.numbers[:, 0]))
    numbers, predicted = evaluation.numbers[known, 0], evaluation.predicted[known, 0]
    errors = np.abs(predicted - numbers)
    covered, widths = [], []
    for seed in range(splits):
        fitting, new = halves(len(numbers), seed)
        scores = [CalibrationScores.of(errors[fitting])]
        low, high = prediction_intervals(predicted[new, None], scores, share, [None])[:, 0].T
        covered.append(float(((low <= numbers[new]) & (numbers[new] <= high)).mean()))
        widths.append(float((high - low).mean()))
    return {"kind": "numbers", **summary(share, numbers, covered), "width": float(np.mean(widths))}


def summary(share: float, images: NDArray[Any], covered: Sequence[float]) -> dict[str, object]:
    return {
        "coverage asked for": share,
        "images": f"{len(images) // 2} and {len(images) // 2}",
        "coverage": float(np.mean(covered)),
        "lowest": min(covered),
        "highest": max(covered),
    }


def coverage(evaluation: Any, *, share: float, splits: int, mapie: bool) -> list[dict[str, object]]:
    """A row for each kind of set, or one for intervals."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return [coverage_of_labels(evaluation, share=share, splits=splits)]
    if isinstance(evaluation, RegressionEvaluation):
        return [coverage_of_numbers(evaluation, share=share, splits=splits)]
    return [
        coverage_of_classes(evaluation, score, share=share, splits=splits, mapie=mapie)
        for score in get_args(SetScore)
    ]


def _same_as_mapie(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    fitting: NDArray[np.int64],
    new: NDArray[np.int64],
    sets: NDArray[np.bool_],
    share: float,
) -> float:
    """The share of the new images whose sets are MAPIE's."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Known(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """Predicts image number x as the network did."""

        classes_ = np.arange(probabilities.shape[1])

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, *_: object) -> Known:
            return self

        def predict_proba(self, x: NDArray[np.int64]) -> NDArray[np.float64]:
            return probabilities[x[:, 0]]

        def predict(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
            return probabilities[x[:, 0]].argmax(1)

    fitted = (
        importlib.import_module("mapie.classification")
        .SplitConformalClassifier(Known(), confidence_level=share, conformity_score="lac", prefit=True)
        .conformalize(fitting[:, None], labels[fitting])
    )
    theirs = fitted.predict_set(new[:, None])[1][:, :, 0]
    empty = ~theirs.any(1)
    theirs[empty, probabilities[new[empty]].argmax(1)] = True
    return float((theirs == sets).all(1).mean())


def outliers(
    classifier: Classifier, images: ImageDataset, training: ImageDataset | None, unseen: list[str]
) -> list[dict[str, object]]:
    """The AUROC of each score for each unseen set."""
    fitting, new = halves(len(images), 0)
    detector = fit_outlier_detector(classifier, images.select(np.sort(fitting)), training)
    usual = _scores(classifier, detector, list(images.select(new[:_MOST]).sources()))
    rows: list[dict[str, object]] = []
    for name in unseen:
        if name == "noise":
            height, width = classifier.preprocessing.size
            shape = (_MOST // 2, height, width, classifier.preprocessing.channels)
            pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            sources = list(named_sources(list(pixels.squeeze(3) if shape[3] == 1 else pixels)))
        else:
            sources = list(named_sources(name))
            order = np.random.default_rng(0).permutation(len(sources))[:_MOST]
            sources = [sources[index] for index in order]
        odd = _scores(classifier, detector, sources)
        labels = np.repeat([0, 1], [len(usual["energy"]), len(odd["energy"])])
        row: dict[str, object] = {"unseen": name, "images": len(odd["energy"])}
        for score, values in odd.items():
            row[score] = float(roc_auc_score(labels, np.concatenate([usual[score], values])))
        row["chosen"] = detector.score
        for kind, found in (("new rejected", usual), ("unseen rejected", odd)):
            p_values = detector.calibration.p_values(found[detector.score])
            row[kind] = float((p_values <= 0.05).mean())
        rows.append(row)
    sys.stderr.write(f"chosen by altered images: {dict(detector.auroc)}\n")
    return rows


def _scores(
    classifier: Classifier, detector: OutlierDetector, sources: Sequence[tuple[str, Source]]
) -> dict[OutlierScore, NDArray[np.float64]]:
    logits, features = [], []
    for batch in evaluation_batches(sources, classifier.preprocessing, workers=1):
        if len(batch.inputs):
            logits.append(classifier.logits(batch.inputs))
            features.append(classifier.embed_batch(batch.inputs))
    reference = detector.reference
    return {
        score: outlier_scores(score, np.concatenate(logits), np.concatenate(features), reference)
        for score in get_args(OutlierScore)
        if score != "knn" or reference is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", nargs="?", help="default: the run's own")
    parser.add_argument("--coverage", type=float, nargs="*", default=[0.9, 0.95])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--mapie", action="store_true")
    parser.add_argument("--of", nargs="*", default=["val", "test"], help="splits")
    parser.add_argument("--unseen", nargs="*", default=[])
    options = parser.parse_args()
    classifier = skipnets.load(options.model, runtime="torch")
    own, _ = calibration_images(classifier, options.data, "all")
    _, training = calibration_images(classifier, options.data, "test")
    images = own.select(np.flatnonzero(np.isin(own.splits, options.of)))
    evaluation = evaluate(classifier, images, split="all")
    covering = [
        row
        for share in options.coverage
        for row in coverage(evaluation, share=share, splits=options.splits, mapie=options.mapie)
    ]
    result = {
        "model": str(options.model),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "coverage": covering,
        "outliers": outliers(classifier, images, training, options.unseen) if options.unseen else [],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
