"""Calibration: true probabilities, sets and intervals with a coverage, and outliers that are recognized.

Temperature scaling calibrates probabilities with a single parameter. It divides the logits by a temperature T
before the softmax (Guo et al. 2017, arXiv 1706.04599). It changes no prediction, only the confidence: T > 1
lowers that of a network that is overconfident.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS, worded
from skipnets.classifier import Classifier, as_classifier
from skipnets.data.dataset import ImageDataset, saying_once
from skipnets.data.options import DataOptions
from skipnets.description import MODEL_NOUNS
from skipnets.errors import UserError, needs_extra
from skipnets.inputs import empty_batch
from skipnets.probabilities import sigmoid, softmax
from skipnets.runtimes.runtime import NoFeaturesError
from skipnets.scaling import TargetScale
from skipnets.uncertainty import (
    CalibrationScores,
    SetScore,
    Uncertainty,
    check_set_score,
    class_scores,
    joint_scores,
    label_scores,
)

with needs_extra("train"):
    from scipy.optimize import brentq
    from scipy.special import logit

    from skipnets.evaluation.evaluating import (
        Evaluation,
        calibration_images,
        evaluate,
        same_data,
        splits_there,
    )
    from skipnets.evaluation.metrics import measure
    from skipnets.evaluation.multi_label import binary_nll
    from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation
    from skipnets.evaluation.outliers import fit_outlier_detector
    from skipnets.evaluation.regression_evaluation import RegressionEvaluation
    from skipnets.evaluation.reliability import binary_reliability

__all__ = ["Calibration", "NoTemperatureError", "calibrate", "fit_temperature"]

# Beyond these limits predictions are practically one-hot or uniform, so a fitted value would mean nothing.
_LOWEST, _HIGHEST = 1e-2, 1e2
FEW = 100


class NoTemperatureError(UserError):
    """No temperature minimizes the loss of these predictions. The caller adds the name of the data."""


class HardlyAMistakeError(NoTemperatureError):
    """So few predictions are wrong that a lower temperature is always better."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted temperature, its effect on metrics, and what was fitted for sets, intervals and outliers.

    Attributes:
        temperature: Divides the logits; 1 of a regression, of which the next metrics are None.
        data: The folder, manifest or named dataset.
        split: The split of these data.
        tta: The test-time augmentation that predictions were made with, and for which all of this holds.
        images: Number of images used.
        nll_before: Mean negative log-likelihood at temperature 1, in nats.
        nll_after: At this temperature.
        ece_before: Expected calibration error at temperature 1.
        ece_after: At this temperature.
        highest_coverage: The highest coverage of prediction sets or intervals that so many images can give;
            None where none of the images has a label.
        outlier_score: The score by which outliers are recognized: "energy", "max-logit" or "knn", which alone
            serves several labels and numbers; None for these if the training images are not there.
        outlier_auroc: Score → AUROC, these images against altered ones, by which it was chosen.
        created: ISO date and time.
        warnings: Caveats, one sentence each.
        failures: Name → reason, of the images that could not be read.
        joint: Whether intervals hold all numbers of an image at once with the coverage.
        sets: Of a classifier of one class an image, the score of its prediction sets: "lac", "aps" or "raps".
    """

    temperature: float
    data: str
    split: str
    tta: str
    images: int
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    highest_coverage: float | None
    outlier_score: str | None
    outlier_auroc: dict[str, float]
    created: str
    warnings: tuple[str, ...]
    failures: dict[str, str]
    joint: bool = False
    sets: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature with the lowest negative log-likelihood.

    The loss is convex in β = 1/T: its slope, the mean of Σₖ pₖzₖ − z_y over the images, rises with β. So the
    root of the slope is the minimum, wherever the search begins.

    Args:
        logits: (N, K), not yet divided by a temperature.
        labels: (N,) true classes.

    Raises:
        NoTemperatureError: There is no minimum within sensible limits: predictions are no better than chance
            (a higher temperature is always better), or, as `HardlyAMistakeError`, every one is correct.
    """
    scores = logits.astype(np.float64)
    right = scores[np.arange(len(labels)), labels]

    def slope(beta: float) -> float:
        return float(((softmax(scores, 1 / beta) * scores).sum(1) - right).mean())

    return _root(slope, len(labels))


def _root(slope: Callable[[float], float], images: int) -> float:
    """The temperature at which the loss, whose slope over 1/T is given, is lowest."""
    if slope(1 / _LOWEST) <= 0:
        raise HardlyAMistakeError(
            f"the classifier hardly makes a mistake on these {images:,} images, so no temperature "
            "fits best: use more images, or harder ones"
        )
    if slope(1 / _HIGHEST) >= 0:
        raise NoTemperatureError(
            "the classifier's predictions are no better than chance here, so no temperature fits: "
            "are these the classes that it was trained on?"
        )
    return 1 / float(brentq(slope, 1 / _HIGHEST, 1 / _LOWEST, xtol=1e-12))


def fit_label_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]) -> float:
    """The temperature with the lowest negative log-likelihood of labels that do not exclude one another.

    Likewise convex in β = 1/T, with the slope Σ (σ(βz) - y) z over the known pairs of an image and a label.

    Args:
        logits: (N, K), not yet divided by a temperature.
        labels: (N, K) with 1, 0, or NaN for unknown.

    Raises:
        NoTemperatureError: As of `fit_temperature`.
    """
    known = np.isfinite(labels)
    if not known.any():
        raise NoTemperatureError("no label of these images is known, so no temperature fits")
    scores, present = logits[known].astype(np.float64), labels[known]

    def slope(beta: float) -> float:
        return float(((sigmoid(scores, 1 / beta) - present) * scores).mean())

    return _root(slope, len(labels))


@saying_once()
def calibrate(
    model: str | os.PathLike[str] | Classifier,
    data: ImageDataset | str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    download: bool = False,
    options: DataOptions | None = None,
    joint: bool = False,
    sets: SetScore = "lac",
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Calibrate a classifier or a regression on images that it was not trained on.

    A classifier gets a temperature and `uncertainty`, and an entry "calibration" in its provenance. From then
    on its probabilities are calibrated, and `predict` takes `coverage` and `reject`. `classifier.save(path)`
    stores all of it; files are not changed.

    Where no temperature fits because hardly any prediction is wrong, the classifier keeps the one it has. The
    distance to training images is among the scores for outliers if these can be read: those of its own run.

    Outliers of a multi-label classifier and of a regression are recognized by the distance to training images
    alone. The thresholds of the former change with its probabilities, so that the same labels are found. A
    regression has no temperature: it gets prediction intervals of its numbers.

    Args:
        model: A classifier, a model file, a run folder or an export.
        data: As for `evaluate`; None uses the data of the classifier's own run.
        split: None uses "val", or all of the data if they are not split.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        download: Whether a named dataset may be downloaded.
        options: As for `evaluate`.
        joint: Whether the intervals of a regression hold all numbers of an image at once with the coverage;
            otherwise each does by itself, which takes narrower ones.
        sets: How sets of classes are made, where an image has one class: "lac", the smallest on average;
            "aps", adaptive ones, large where the network is unsure; or "raps", adaptive ones with few
            improbable classes.
        progress: Called after every batch with the number of images done and their total.

    Raises:
        UserError: If the classifier was trained on these images, its predictions are no better than chance,
            or `evaluate` fails.
    """
    classifier = as_classifier(model)
    if joint and classifier.task != "regression":
        raise UserError("joint: must be given for numbers alone (task=regression), which have intervals")
    check_set_score(sets)
    if sets != "lac" and classifier.task != "single-label":
        raise UserError(
            f"sets={sets}: must be lac with a {MODEL_NOUNS[classifier.task]}; others are for one class an "
            "image"
        )
    if split is None:
        split = _held_out_split(classifier, data, download, options)
    evaluation = evaluate(
        classifier,
        data,
        split=split,
        batch_size=batch_size,
        workers=workers,
        download=download,
        options=options,
        progress=progress,
    )
    trained_on = (evaluation.known or {}).get("train", 0)
    if trained_on or evaluation.split == "train":
        reason = (
            f"{trained_on or len(evaluation.names):,} of these images were "
            "trained on, and the model knows them better than others: "
            "use the split val, or images it has not seen"
        )
        raise UserError(f"{evaluation.data}: {worded(reason, evaluation.dims)}")
    warnings = _warnings(evaluation)
    fit: dict[str, Any] = (
        _number_fit(evaluation, classifier.scales or (), joint=joint)
        if isinstance(evaluation, RegressionEvaluation)
        else _probability_fit(evaluation, classifier.temperature, warnings, sets)
    )
    temperature = fit["temperature"]
    images, training = calibration_images(classifier, data, split, download=download, options=options)
    by_logits = classifier.task == "single-label"
    lacking = (
        f"the training {INPUTS[evaluation.dims]} are not there"
        if training is None
        else _without_features(classifier)
    )
    if lacking is not None:
        found = "are recognized by the logits alone" if by_logits else "cannot be recognized"
        warnings.append(f"{lacking}, so outliers {found}")
        training = None
    detector = None
    if training is not None or by_logits:
        detector = fit_outlier_detector(
            classifier, images, training, batch_size=batch_size, workers=workers, progress=progress
        )
    uncertainty = Uncertainty(
        temperature=temperature,
        tta=classifier.tta,
        sets=fit.pop("sets", None),
        set_score=sets,
        intervals=fit.pop("intervals", ()),
        outliers=detector,
    )
    calibration = Calibration(
        **fit,
        data=evaluation.data,
        split=evaluation.split,
        tta=classifier.tta,
        images=len(evaluation.names),
        highest_coverage=uncertainty.highest_coverage,
        outlier_score=None if detector is None else detector.score,
        outlier_auroc={} if detector is None else dict(detector.auroc),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        warnings=tuple(warnings),
        failures=evaluation.failures,
        sets=sets if classifier.task == "single-label" else None,
    )
    if classifier.thresholds is not None:
        # The same labels are found as before.
        logits = classifier.temperature * logit(np.array(classifier.thresholds))
        classifier.thresholds = tuple(sigmoid(logits, temperature).tolist())
    classifier.temperature = temperature
    classifier.uncertainty = uncertainty
    record = calibration.to_dict()
    del record["failures"]
    classifier.provenance["calibration"] = record
    return calibration


def _without_features(classifier: Classifier) -> str | None:
    """What to say of a network that has no features to compare images by; None of one that has."""
    try:
        classifier.embed_batch(empty_batch(classifier.preprocessing, classifier.runtime.input_type, images=1))
    except NoFeaturesError:
        return "the network has no features (embed) to compare images by"
    return None


def _probability_fit(
    evaluation: Evaluation | MultiLabelEvaluation, temperature: float, warnings: list[str], score: SetScore
) -> dict[str, Any]:
    """The temperature, what it changes, and the scores of sets: fields of `Calibration`, and "sets".

    Args:
        evaluation: On the calibration images.
        temperature: The classifier's, which it keeps where hardly any prediction is wrong.
        warnings: Gets what is to be said of that, and of missing sets.
        score: Of sets of classes.

    Raises:
        UserError: If predictions are no better than chance.
    """
    several = isinstance(evaluation, MultiLabelEvaluation)
    fit, judge = (fit_label_temperature, _label_errors) if several else (fit_temperature, _errors)
    logits, labels = evaluation.logits, cast("NDArray[Any]", evaluation.labels)
    try:
        temperature = fit(logits, labels)
    except HardlyAMistakeError as error:
        reason = worded(str(error), evaluation.dims)
        warnings.append(f"{evaluation.data} ({evaluation.split}): {reason}; it stays {temperature:.4g}")
    except NoTemperatureError as error:
        raise UserError(
            f"{evaluation.data} ({evaluation.split}): {worded(str(error), evaluation.dims)}"
        ) from error
    if several:
        sets = label_scores(sigmoid(logits, temperature), labels)
        if sets is None:
            unlabeled = "no image is known to have a label, so there are no prediction sets"
            warnings.append(worded(unlabeled, evaluation.dims))
    else:
        of_classes = class_scores(softmax(logits, temperature), score)
        sets = CalibrationScores.of(of_classes[np.arange(len(labels)), labels])
    before, after = (judge(logits, labels, at) for at in (1.0, temperature))
    return {
        "temperature": temperature,
        "nll_before": before[0],
        "nll_after": after[0],
        "ece_before": before[1],
        "ece_after": after[1],
        "sets": sets,
    }


def _number_fit(
    evaluation: RegressionEvaluation, scales: Sequence[TargetScale], *, joint: bool
) -> dict[str, Any]:
    """The absolute residuals of each target, and no temperature: fields of `Calibration`, and "intervals".

    Raises:
        UserError: If a target is not known of any image or, for joint intervals, no image has all.
    """
    residuals = np.abs(evaluation.predicted - evaluation.numbers)
    known = np.isfinite(residuals)
    if len(without := np.flatnonzero(~known.any(0))):
        raise UserError(
            f"{evaluation.data} ({evaluation.split}): has no number for {evaluation.targets[without[0]]}, so "
            "there are no intervals for it"
        )
    scores: tuple[CalibrationScores, ...] | None = tuple(
        CalibrationScores.of(column[of]) for column, of in zip(residuals.T, known.T, strict=True)
    )
    if joint:
        scores = joint_scores(residuals, [scale.std for scale in scales])
        if scores is None:
            nothing = worded("has no image with all numbers, which joint needs", evaluation.dims)
            raise UserError(f"{evaluation.data} ({evaluation.split}): {nothing}")
    return {
        "temperature": 1.0,
        **dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after")),
        "intervals": scores,
        "joint": joint,
    }


def _errors(
    logits: NDArray[np.floating[Any]], labels: NDArray[Any], temperature: float
) -> tuple[float, float]:
    """Negative log-likelihood and expected calibration error."""
    metrics = measure(logits, labels, temperature=temperature)
    return metrics.nll, metrics.ece


def _label_errors(
    logits: NDArray[np.floating[Any]], labels: NDArray[Any], temperature: float
) -> tuple[float, float]:
    """The same of the known labels of all images together."""
    known = np.isfinite(labels)
    bins = binary_reliability(sigmoid(logits, temperature)[known], labels[known] == 1)
    return binary_nll(logits, labels, temperature=temperature), bins.ece


def _held_out_split(
    classifier: Classifier,
    data: ImageDataset | str | os.PathLike[str] | None,
    download: bool,
    options: DataOptions | None,
) -> str:
    """The split to fit on: "val", or "all" for data without splits."""
    if splits_there(classifier, data, download=download, options=options) != ["test"]:
        return "val"
    own = classifier.provenance.get("data")
    if isinstance(own, str) and isinstance(data, str | os.PathLike) and same_data(data, own):
        kind = INPUTS[classifier.preprocessing.dims]
        raise UserError(
            f"{data}: the classifier was trained on these data, and no splits.csv beside it says which "
            f"{kind}: name its run folder, or {kind} that it has not seen"
        )
    return "all"


def _warnings(evaluation: Evaluation | MultiLabelEvaluation | RegressionEvaluation) -> list[str]:
    caveats = []
    if count := (evaluation.known or {}).get("test", 0):
        caveats.append(
            f"{count:,} of the images are the run's test images: "
            "calibration metrics on its test split are optimistic from now on"
        )
    if evaluation.failures:
        caveats.append(f"{len(evaluation.failures):,} images could not be read and were left out")
    if len(evaluation.names) < FEW:
        what = "the temperature is" if not isinstance(evaluation, RegressionEvaluation) else "intervals are"
        caveats.append(f"{len(evaluation.names):,} images are few: {what} uncertain")
    return [worded(caveat, evaluation.dims) for caveat in caveats]
