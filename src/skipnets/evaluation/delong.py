"""DeLong's test: whether two classifiers' AUROCs on the same images differ by more than chance.

Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44(3), in the form of Sun and Xu 2014, IEEE Signal
Processing Letters 21(11), which takes ranks instead of comparing all pairs.

Shapes: n images, of which m have the label; C classifiers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from skipnets.errors import UserError
from skipnets.evaluation.intervals import Interval

__all__ = ["PairedAuroc", "auroc_covariance", "delong_test"]


@dataclass(frozen=True, kw_only=True)
class PairedAuroc:
    """The AUROCs of two classifiers on the same images.

    Attributes:
        first: Of the first classifier.
        second: Of the second.
        interval: 95% interval of the second minus the first.
        p: Two-sided p-value of no difference.
    """

    first: float
    second: float
    interval: Interval
    p: float

    @property
    def difference(self) -> float:
        """The second minus the first."""
        return self.second - self.first


def auroc_covariance(
    scores: NDArray[np.floating[Any]], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs of several classifiers on the same images, and the covariance of these estimates.

    Args:
        scores: (C, n) scores of each image.
        present: (n,) whether an image has the label.

    Returns:
        (C,) AUROCs and their (C, C) covariance.

    Raises:
        UserError: If fewer than two images have the label, or have it not: then there is no variance.
    """
    positive, negative = scores[:, present], scores[:, ~present]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        raise UserError(
            f"present: must be so for at least two images and not for two others, not {m} and {n}"
        )
    together = np.stack([rankdata(row) for row in np.hstack([positive, negative])])
    # How many of the others each image is ranked rightly against, as a share.
    of_positives = (together[:, :m] - np.stack([rankdata(row) for row in positive])) / n
    of_negatives = 1 - (together[:, m:] - np.stack([rankdata(row) for row in negative])) / m
    covariance = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return of_positives.mean(1), covariance


def delong_test(
    first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]], present: NDArray[np.bool_]
) -> PairedAuroc:
    """Compare the AUROCs of two classifiers on the same images.

    Args:
        first: (n,) scores of the first classifier.
        second: (n,) scores of the second.
        present: (n,) whether an image has the label.

    Raises:
        UserError: As `auroc_covariance`.
    """
    areas, covariance = auroc_covariance(np.stack([first, second]).astype(np.float64), present)
    difference = float(areas[1] - areas[0])
    spread = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if spread < 1e-12:  # the two rank all pairs alike, or differ in the same way for every image
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p = float(2 * norm.sf(abs(difference) / spread))
    reach = float(norm.ppf(0.975)) * spread
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return PairedAuroc(first=float(areas[0]), second=float(areas[1]), interval=(low, high), p=p)
