"""The probabilities from which on labels count as present, chosen on images not learned from.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["ThresholdRule", "choose_thresholds"]

_RIGHT = "must be f1, youden, sensitivity=0.9 or specificity=0.9 with any share, or one number from 0 to 1"


@dataclass(frozen=True)
class ThresholdRule:
    """How thresholds are chosen.

    Attributes:
        kind: "f1" (the highest F1 score), "youden" (the highest sensitivity + specificity - 1),
            "sensitivity" (the highest threshold with at least this sensitivity), "specificity" (the lowest
            one with at least this specificity), or "fixed".
        value: The sensitivity, the specificity or the threshold.
    """

    kind: str
    value: float = 0.5

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """Read a rule, such as "f1" or "sensitivity=0.9".

        Raises:
            UserError: If it is none.
        """
        kind, _, share = str(text).strip().lower().partition("=")
        if kind in ("f1", "youden") and not share:
            return cls(kind)
        try:
            value = float(share if share else kind)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or (share and kind not in ("sensitivity", "specificity")):
            raise UserError(f"threshold={text}: {_RIGHT}")
        return cls(kind if share else "fixed", value)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.value:g}"
        return self.kind if self.kind in ("f1", "youden") else f"{self.kind}={self.value:g}"


def choose_thresholds(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    rule: ThresholdRule,
    classes: Sequence[str],
) -> tuple[tuple[float, ...], list[str]]:
    """Choose the threshold of each label.

    Between two images, a threshold lies in the middle.

    Args:
        probabilities: (N, K).
        labels: (N, K), with NaN where a label is not known.
        rule: How.
        classes: The K names.

    Returns:
        K thresholds, and the names of labels that have 0.5 because no image, or every one, has them.
    """
    if rule.kind == "fixed":
        return (rule.value,) * len(classes), []
    chosen, undefined = [], []
    for index, name in enumerate(classes):
        known = np.isfinite(labels[:, index])
        present = labels[known, index] == 1
        if not present.any() or present.all():
            chosen.append(0.5)
            undefined.append(name)
        else:
            chosen.append(_choose(probabilities[known, index].astype(np.float64), present, rule))
    return tuple(chosen), undefined


def _choose(probability: NDArray[np.float64], present: NDArray[np.bool_], rule: ThresholdRule) -> float:
    """The threshold of one label that some images have and some have not."""
    values = np.unique(probability)
    # Just those of at least the i-th value count as present; at the end, none does.
    above = len(probability) - np.searchsorted(np.sort(probability), values, side="left")
    hits = present.sum() - np.searchsorted(np.sort(probability[present]), values, side="left")
    above, hits = np.append(above, 0), np.append(hits, 0)
    sensitivity = hits / present.sum()
    absent = int((~present).sum())
    specificity = (absent - (above - hits)) / absent  # a share of whole images, as exact as the one asked for
    if rule.kind == "f1":
        best = int(np.argmax(2 * hits / (above + present.sum())))
    elif rule.kind == "youden":
        best = int(np.argmax(sensitivity + specificity))
    elif rule.kind == "sensitivity":
        best = int(np.flatnonzero(sensitivity >= rule.value)[-1])
    else:
        best = int(np.flatnonzero(specificity >= rule.value)[0])
    # Beside the lowest and the highest value lie 0 and 1.
    edges = np.concatenate([[0.0], values, [1.0]])
    return float((edges[best] + edges[best + 1]) / 2)
