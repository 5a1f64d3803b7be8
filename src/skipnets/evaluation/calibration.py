"""Temperature scaling: calibrates a classifier's probabilities with a single parameter.

It divides the logits by a temperature T before the softmax (Guo et al. 2017, arXiv 1706.04599). It changes no
prediction, only the confidence: T > 1 lowers that of a network that is overconfident.

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

from skipnets.classifier import Classifier, as_classifier, check_single_label, softmax
from skipnets.data.options import DataOptions
from skipnets.data.sources import ImageDataset
from skipnets.errors import UserError, needs_extra

with needs_extra("train"):
    from scipy.optimize import brentq

    from skipnets.evaluation.evaluating import Evaluation, evaluate_classes, splits_there
    from skipnets.evaluation.metrics import measure

__all__ = ["Calibration", "NoTemperatureError", "calibrate", "fit_temperature"]

# Beyond these limits predictions are practically one-hot or uniform, so a fitted value would mean nothing.
_LOWEST, _HIGHEST = 1e-2, 1e2
FEW = 100


class NoTemperatureError(UserError):
    """No temperature minimizes the loss of these predictions. The caller adds the name of the data."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted temperature, the data it was fitted on, and its effect on their metrics.

    Attributes:
        temperature: Divides the logits.
        data: The folder, manifest or named dataset.
        split: The split of these data.
        images: Number of images used.
        nll_before: Mean negative log-likelihood at temperature 1, in nats.
        nll_after: At this temperature.
        ece_before: Expected calibration error at temperature 1.
        ece_after: At this temperature.
        created: ISO date and time.
        warnings: Caveats, one sentence each.
        failures: Name → reason, of the images that could not be read.
    """

    temperature: float
    data: str
    split: str
    images: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
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
        NoTemperatureError: There is no minimum within sensible limits: every prediction is correct (a lower
            temperature is always better), or predictions are no better than chance (a higher one is).
    """
    scores = logits.astype(np.float64)
    right = scores[np.arange(len(labels)), labels]

    def slope(beta: float) -> float:
        return float(((softmax(scores, 1 / beta) * scores).sum(1) - right).mean())

    if slope(1 / _LOWEST) <= 0:
        raise NoTemperatureError(
            f"the classifier hardly makes a mistake on these {len(labels):,} images, so no temperature "
            "fits best: use more images, or harder ones"
        )
    if slope(1 / _HIGHEST) >= 0:
        raise NoTemperatureError(
            "the classifier's predictions are no better than chance here, so no temperature fits: "
            "are these the classes that it was trained on?"
        )
    return 1 / float(brentq(slope, 1 / _HIGHEST, 1 / _LOWEST, xtol=1e-12))


def calibrate(
    model: str | os.PathLike[str] | Classifier,
    data: ImageDataset | str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    batch_size: int = 64,
    workers: int = 2,
    download: bool = False,
    options: DataOptions | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Fit a classifier's temperature on images that it was not trained on.

    A classifier gets the temperature, and an entry "calibration" in its provenance: its probabilities are
    calibrated from then on, and `classifier.save(path)` stores the temperature. Files are not changed.

    Args:
        model: A classifier, a model file, a run folder or an export.
        data: As for `evaluate`; None uses the data of the classifier's own run.
        split: None uses "val", or all of the data if they are not split.
        batch_size: Images per forward pass.
        workers: Threads that read images.
        download: Whether a named dataset may be downloaded.
        options: As for `evaluate`.
        progress: Called after every batch with the number of images done and their total.

    Raises:
        UserError: If the classifier was trained on these images, no temperature fits, or `evaluate` fails.
    """
    classifier = as_classifier(model)
    check_single_label(classifier, "calibrate")
    if split is None:
        split = _held_out_split(classifier, data, download, options)
    evaluation = evaluate_classes(
        classifier,
        data,
        what="calibrate",
        split=split,
        batch_size=batch_size,
        workers=workers,
        download=download,
        options=options,
        progress=progress,
    )
    trained_on = (evaluation.known or {}).get("train", 0)
    if trained_on or evaluation.split == "train":
        raise UserError(
            f"{evaluation.data}: {trained_on or len(evaluation.names):,} of these images were "
            "trained on, and the classifier is more confident on them than on others: "
            "use the split val, or images it has not seen"
        )
    try:
        temperature = fit_temperature(evaluation.logits, evaluation.labels)
    except NoTemperatureError as error:
        raise UserError(f"{evaluation.data} ({evaluation.split}): {error}") from error
    before = measure(evaluation.logits, evaluation.labels)
    after = measure(evaluation.logits, evaluation.labels, temperature=temperature)
    calibration = Calibration(
        temperature=temperature,
        data=evaluation.data,
        split=evaluation.split,
        images=len(evaluation.names),
        nll_before=before.nll,
        nll_after=after.nll,
        ece_before=before.ece,
        ece_after=after.ece,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        warnings=tuple(_warnings(evaluation)),
        failures=evaluation.failures,
    )
    classifier.temperature = temperature
    record = calibration.to_dict()
    del record["failures"]
    classifier.provenance["calibration"] = record
    return calibration


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


def _warnings(evaluation: Evaluation) -> list[str]:
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
