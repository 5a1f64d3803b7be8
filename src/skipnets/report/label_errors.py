"""Probable label errors by confident learning (Northcutt, Jiang and Chuang, 2021), as cleanlab does it.

Of predictions by a model that was not trained on the images, those that contradict the label count if the
model is more confident than it usually is in that class. The probabilities are calibrated on the given labels
first: of the labels that an overconfident network doubts, twice as many are then wrong
(benchmarks/label_errors.py).

Shapes: N images, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import needs_extra
from skipnets.evaluation.calibration import NoTemperatureError, fit_temperature
from skipnets.probabilities import softmax

__all__ = ["LEAST_KAPPA", "LabelCheck", "LabelError", "calibrated", "cohen_kappa", "find_label_errors"]

# Predictions with a smaller kappa (Cohen) say more about the model than about the labels. Agreement from 0.4
# on is "moderate" (Landis and Koch, 1977): 70% of the labels of two equal classes, 46% of ten.
LEAST_KAPPA = 0.4


@dataclass(frozen=True, kw_only=True)
class LabelCheck:
    """How labels were checked against predictions.

    Attributes:
        source: Where the predictions come from.
        images: How many images were checked.
        trained_on: How many were not, because the model was trained on them.
        agreement: The share of the checked images whose label was predicted; None where nothing could be
            judged, because all images have the same label, or each label is present in all images or in none.
        kappa: Cohen's kappa of labels and predictions: agreement beyond chance, at most 1; None likewise.
        labels_withheld: Of images with several labels, those whose errors are not listed because the
            predictions of them are too bad.
    """

    source: str
    images: int
    trained_on: int
    agreement: float | None
    kappa: float | None
    labels_withheld: tuple[str, ...] = ()

    @property
    def withheld(self) -> bool:
        """Whether the predictions are too bad to tell label errors from the model's own."""
        return self.kappa is None or self.kappa < LEAST_KAPPA

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "source": self.source,
            "images": self.images,
            "trained_on": self.trained_on,
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "kappa": None if self.kappa is None else round(self.kappa, 4),
            "withheld": self.withheld,
            **({"labels_withheld": list(self.labels_withheld)} if self.labels_withheld else {}),
        }

    @property
    def reason(self) -> str:
        """Why label errors are not listed; empty where they are."""
        if self.agreement is None or self.kappa is None:
            return "every label has one value in all images that were checked, so none can be contradicted"
        if self.withheld:
            return (
                f"the model agrees with {self.agreement:.0%} of the labels only (Cohen's kappa "
                f"{self.kappa:.2f}, at least {LEAST_KAPPA} is needed), so most of them would be its own "
                "errors; take a better model"
            )
        return ""


class LabelError(NamedTuple):
    """An image whose label is probably wrong.

    Attributes:
        image: Its position.
        suggested: The most probable other class.
        of_label: The probability of the label.
        of_suggested: The probability of the suggested class.
    """

    image: int
    suggested: int
    of_label: float
    of_suggested: float


def find_label_errors(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> list[LabelError]:
    """Find labels that are probably wrong, those with the least probable label first.

    Args:
        labels: (N,) the given classes.
        probabilities: (N, K) predicted by a model that was not trained on these images; best `calibrated`.
    """
    with needs_extra("report"):
        from cleanlab.filter import find_label_issues
    if not len(labels):
        return []
    with warnings.catch_warnings():
        # That errors of classes with few images may be missed: an audit lists small classes itself.
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        # What both of cleanlab's rules name: precision goes before recall.
        found = find_label_issues(
            labels, probabilities, filter_by="both", return_indices_ranked_by="self_confidence", n_jobs=1
        )
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    suggested = others.argmax(1)
    return [
        LabelError(
            image=int(image),
            suggested=int(suggested[image]),
            of_label=float(probabilities[image, labels[image]]),
            of_suggested=float(probabilities[image, suggested[image]]),
        )
        for image in found
    ]


def cohen_kappa(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Agreement beyond chance: 0 as by chance, 1 in all images; 0 where chance alone would agree.

    Args:
        labels: (N,) the given classes.
        predicted: (N,) the predicted classes.
        classes: K.
    """
    count = len(labels)
    agreement = float((labels == predicted).mean())
    given, answered = (np.bincount(each, minlength=classes) / count for each in (labels, predicted))
    chance = float(given @ answered)
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


def calibrated(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, K) at the temperature at which the labels are most likely; unchanged where there is none."""
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float64)
    if not len(labels):
        return logits
    try:
        return softmax(logits, fit_temperature(logits, labels))
    except NoTemperatureError:
        return softmax(logits)
