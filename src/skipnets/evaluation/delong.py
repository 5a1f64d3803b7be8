"""DeLong's test: whether two classifiers' AUROCs on the same images differ by more than chance.

Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44(3), in the form of Sun and Xu 2014, IEEE Signal
Processing Letters 21(11), which takes ranks instead of comparing all pairs. Where several images are of one
patient: Obuchowski 1997, Biometrics 53(2), which sums over the images of each.

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
    scores: NDArray[np.floating[Any]],
    present: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs of several classifiers on the same images, and the covariance of these estimates.

    Args:
        scores: (C, n) scores of each image.
        present: (n,) whether an image has the label.
        groups: (n,) numbers of what images belong to, such as patients; None where each stands alone.

    Returns:
        (C,) AUROCs and their (C, C) covariance.

    Raises:
        UserError: If images of fewer than two groups have the label, or have it not: there is no variance.
    """
    positive, negative = scores[:, present], scores[:, ~present]
    m, n = positive.shape[1], negative.shape[1]
    units = np.arange(len(present)) if groups is None else np.unique(groups, return_inverse=True)[1]
    with_label, without = (len(np.unique(units[of])) for of in (present, ~present))
    if min(with_label, without) < 2:
        raise UserError(
            f"present: must be so for images of at least two groups, and not for two, not {with_label} and "
            f"{without}"
        )
    together = np.stack([rankdata(row) for row in np.hstack([positive, negative])])
    # How many of the others each image is ranked rightly against, as a share.
    of_positives = (together[:, :m] - np.stack([rankdata(row) for row in positive])) / n
    of_negatives = 1 - (together[:, m:] - np.stack([rankdata(row) for row in negative])) / m
    areas = of_positives.mean(1)
    # Of each group, how far its images are from the mean: (groups, C).
    ours, theirs = np.zeros((2, int(units.max()) + 1, len(scores)))
    np.add.at(ours, units[present], (of_positives - areas[:, None]).T / m)
    np.add.at(theirs, units[~present], (of_negatives - areas[:, None]).T / n)
    count = len(ours)
    covariance = (
        with_label / (with_label - 1) * ours.T @ ours
        + without / (without - 1) * theirs.T @ theirs
        + count / (count - 1) * (ours.T @ theirs + theirs.T @ ours)
    )
    return areas, covariance


def delong_test(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    present: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
) -> PairedAuroc:
    """Compare the AUROCs of two classifiers on the same images.

    Args:
        first: (n,) scores of the first classifier.
        second: (n,) scores of the second.
        present: (n,) whether an image has the label.
        groups: As of `auroc_covariance`.

    Raises:
        UserError: As `auroc_covariance`.
    """
    areas, covariance = auroc_covariance(np.stack([first, second]).astype(np.float64), present, groups)
    difference = float(areas[1] - areas[0])
    spread = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if spread < 1e-12:  # the two rank all pairs alike, or differ in the same way for every image
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p = float(2 * norm.sf(abs(difference) / spread))
    reach = float(norm.ppf(0.975)) * spread
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return PairedAuroc(first=float(areas[0]), second=float(areas[1]), interval=(low, high), p=p)
