"""Calibration: probabilities that are true, sets of classes with a coverage, and the recognition of outliers.

Temperature scaling calibrates probabilities with a single parameter. It divides the logits by a temperature T
before the softmax (Guo et al. 2017, arXiv 1706.04599). It changes no prediction, only the confidence: T > 1
lowers that of a network that is overconfident.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.classifier import Classifier, as_classifier, sigmoid, softmax
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.errors import UserError, needs_extra
from skipnets.uncertainty import CalibrationScores, Uncertainty

with needs_extra("train"):
    from scipy.optimize import brentq
    from scipy.special import logit

    from skipnets.evaluation.evaluating import Evaluation, calibration_images, evaluate, splits_there
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
    """A fitted temperature, its effect on metrics, and what was fitted for sets and outliers.

    Attributes:
        temperature: Divides the logits.
        data: The folder, manifest or named dataset.
        split: The split of these data.
        tta: The test-time augmentation that predictions were made with, and for which all of this holds.
        images: Number of images used.
        nll_before: Mean negative log-likelihood at temperature 1, in nats.
        nll_after: At this temperature.
        ece_before: Expected calibration error at temperature 1.
        ece_after: At this temperature.
        highest_coverage: The highest coverage of prediction sets that so many images can give; None for a
            multi-label classifier, which has no sets.
        outlier_score: The score by which outliers are recognized: "energy", "max-logit" or "knn", which alone
            serves a multi-label classifier; None for that if its training images are not there.
        outlier_auroc: Score → AUROC, these images against altered ones, by which it was chosen.
        created: ISO date and time.
        warnings: Caveats, one sentence each.
        failures: Name → reason, of the images that could not be read.
    """

    temperature: float
    data: str
    split: str
    tta: str
    images: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    highest_coverage: float | None
    outlier_score: str | None
    outlier_auroc: dict[str, float]
    created: str
    warnings: tuple[str, ...]
    failures: dict[str, str]

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
    scores, present = logits[known].astype(np.float64), labels[known]

    def slope(beta: float) -> float:
        return float(((sigmoid(scores, 1 / beta) - present) * scores).mean())

    return _root(slope, len(labels))


def calibrate(
    model: str | os.PathLike[str] | Classifier,
    data: ImageDataset | str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    download: bool = False,
    options: DataOptions | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Calibrate a classifier on images that it was not trained on.

    A classifier gets a temperature and `uncertainty`, and an entry "calibration" in its provenance. From then
    on its probabilities are calibrated, and `predict` takes `coverage` and `reject`. `classifier.save(path)`
    stores all of it; files are not changed.

    Where no temperature fits because hardly any prediction is wrong, the classifier keeps the one it has. The
    distance to training images is among the scores for outliers if these can be read: those of its own run.

    A multi-label classifier gets no prediction sets, and its outliers are told by the distance to training
    images. Its thresholds change with its probabilities, so that the same labels are found.

    Args:
        model: A classifier, a model file, a run folder or an export.
        data: As for `evaluate`; None uses the data of the classifier's own run.
        split: None uses "val", or all of the data if they are not split.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        download: Whether a named dataset may be downloaded.
        options: As for `evaluate`.
        progress: Called after every batch with the number of images done and their total.

    Raises:
        UserError: If the classifier was trained on these images, its predictions are no better than chance,
            or `evaluate` fails.
    """
    classifier = as_classifier(model)
    if classifier.task == "regression":
        raise UserError(
            f"{classifier.path or 'this model'}: is a regression, which has no probabilities to calibrate"
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
    assert not isinstance(evaluation, RegressionEvaluation)
    trained_on = (evaluation.known or {}).get("train", 0)
    if trained_on or evaluation.split == "train":
        raise UserError(
            f"{evaluation.data}: {trained_on or len(evaluation.names):,} of these images were "
            "trained on, and the classifier is more confident on them than on others: "
            "use the split val, or images it has not seen"
        )
    warnings = _warnings(evaluation)
    several = isinstance(evaluation, MultiLabelEvaluation)
    fit, judge = (fit_label_temperature, _label_errors) if several else (fit_temperature, _errors)
    labels: NDArray[Any] = evaluation.labels
    try:
        temperature = fit(evaluation.logits, labels)
    except HardlyAMistakeError as error:
        temperature = classifier.temperature
        warnings.append(f"{evaluation.data} ({evaluation.split}): {error}; it stays {temperature:.4g}")
    except NoTemperatureError as error:
        raise UserError(f"{evaluation.data} ({evaluation.split}): {error}") from error
    images, training = calibration_images(classifier, data, split, download=download, options=options)
    if training is None:
        told = "cannot be told" if several else "are told by the logits alone"
        warnings.append(f"the training images are not there, so outliers {told}")
    uncertainty = None
    if training is not None or not several:
        detector = fit_outlier_detector(
            classifier, images, training, batch_size=batch_size, workers=workers, progress=progress
        )
        uncertainty = Uncertainty(
            temperature=temperature,
            tta=classifier.tta,
            sets=None if several else _set_scores(evaluation.logits, labels, temperature),
            outliers=detector,
        )
    before, after = (judge(evaluation.logits, labels, at) for at in (1.0, temperature))
    calibration = Calibration(
        temperature=temperature,
        data=evaluation.data,
        split=evaluation.split,
        tta=classifier.tta,
        images=len(evaluation.names),
        nll_before=before[0],
        nll_after=after[0],
        ece_before=before[1],
        ece_after=after[1],
        highest_coverage=None
        if uncertainty is None or uncertainty.sets is None
        else uncertainty.sets.highest_coverage,
        outlier_score=None if uncertainty is None else uncertainty.outliers.score,
        outlier_auroc={} if uncertainty is None else dict(uncertainty.outliers.auroc),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        warnings=tuple(warnings),
        failures=evaluation.failures,
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


def _set_scores(
    logits: NDArray[np.floating[Any]], labels: NDArray[Any], temperature: float
) -> CalibrationScores:
    """One minus the probabilities of the true classes."""
    right = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return CalibrationScores.of(1 - right)


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
    if (
        data is not None
        and not isinstance(data, ImageDataset)
        and classifier.provenance.get("data") == str(data)
    ):
        raise UserError(
            f"{data}: the classifier was trained on these data, and no splits.csv beside it says which "
            "images: name its run folder, or images that it has not seen"
        )
    return "all"


def _warnings(evaluation: Evaluation | MultiLabelEvaluation) -> list[str]:
    caveats = []
    if count := (evaluation.known or {}).get("test", 0):
        caveats.append(
            f"{count:,} of the images are the run's test images: "
            "calibration metrics on its test split are optimistic from now on"
        )
    if evaluation.failures:
        caveats.append(f"{len(evaluation.failures):,} images could not be read and were left out")
    if len(evaluation.names) < FEW:
        caveats.append(f"{len(evaluation.names):,} images are few: the temperature is uncertain")
    return caveats
