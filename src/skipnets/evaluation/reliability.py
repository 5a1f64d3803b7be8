"""Reliability diagrams and the expected calibration error: confidence compared with accuracy.

Bins are closed above, ((m − 1)/B, m/B], as in Guo et al. 2017 (arXiv 1706.04599, section 2) and scikit-learn.

Shapes: N images, K classes, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.evaluation.intervals import wilson_interval
from skipnets.evaluation.ratios import ratio

__all__ = ["CALIBRATION_BINS", "Reliability", "binary_reliability", "confidence_bin", "reliability"]

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """The data of a reliability diagram: accuracy in bins of confidence.

    Attributes:
        edges: (B + 1,) edges of the bins, from 0 to 1.
        counts: (B,) predictions in each bin.
        confidence: (B,) their mean confidence; NaN for an empty bin.
        accuracy: (B,) the share that is correct; NaN for an empty bin.
        intervals: (B, 2) 95% confidence intervals of the accuracy (Wilson); NaN for an empty bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    intervals: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, weighted by count.

        NaN where there is no image.
        """
        full = self.counts > 0
        if not full.any():
            return float("nan")
        gaps = np.abs(self.confidence - self.accuracy)[full]
        return float((gaps * self.counts[full]).sum() / self.counts.sum())


def confidence_bin(confidence: NDArray[np.float64], bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """The 0-based bin that each confidence falls into."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], *, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Sort predictions into bins of equal width by their confidence.

    Args:
        probabilities: (N, K).
        labels: (N,) true classes.
        bins: Number of bins; `CALIBRATION_BINS` gives the ECE of `evaluate`.
    """
    confidence = probabilities.max(1).astype(np.float64)
    return binary_reliability(confidence, probabilities.argmax(1) == labels, bins=bins)


def binary_reliability(
    probability: NDArray[np.floating[Any]], present: NDArray[np.bool_], *, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Sort predictions into bins of equal width by the probability of what they say.

    Args:
        probability: (N,) probabilities that something is so, such as that a label is present.
        present: (N,) whether it is.
        bins: Number of bins.
    """
    confidence = probability.astype(np.float64)
    bin_of = confidence_bin(confidence, bins)
    counts = np.bincount(bin_of, minlength=bins)
    hits = np.bincount(bin_of, present, minlength=bins)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        counts=counts,
        confidence=ratio(np.bincount(bin_of, confidence, minlength=bins), counts),
        accuracy=ratio(hits, counts),
        intervals=np.array(
            [
                wilson_interval(int(hit), int(count)) if count else (np.nan, np.nan)
                for hit, count in zip(hits, counts, strict=True)
            ]
        ),
    )
