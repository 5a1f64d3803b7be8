"""95% confidence intervals that stay valid where no prediction or every prediction is wrong.

Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest
from scipy.stats import t as student_t

__all__ = [
    "Interval",
    "auroc_interval",
    "mean_interval",
    "paired_interval",
    "share_interval",
    "wilson_interval",
]

Interval = tuple[float, float]
_NORMAL_97_5 = NormalDist().inv_cdf(0.975)  # 95% lie within ±


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's interval of a proportion; see Brown, Cai and DasGupta 2001, Statistical Science 16(2)."""
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def share_interval(right: NDArray[np.bool_], units: NDArray[np.int64] | None = None) -> Interval:
    """Interval of the share of images that are right, some of which may be of one patient.

    Images of a unit are more alike than others. Wilson's interval is taken at their effective sample size: N
    divided by the design effect, which is the variance of the share between units over that of independent
    images (at least 1), and for few units reduced by Student's t (Korn and Graubard 1998, Survey Methodology
    24(2); Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3(4)). Where all are right, or
    none is, the number of units is taken.

    Args:
        right: (N,) at least one.
        units: (N,) the number of what each belongs to, from 0. None: each image stands alone.
    """
    images, share = len(right), float(right.mean())
    if units is None:
        return wilson_interval(int(right.sum()), images)
    count = int(units.max()) + 1
    effective = float(count)
    if 0 < share < 1 and count > 1:
        of_unit = np.bincount(units, right - share, minlength=count)
        variance = count / (count - 1) * float(of_unit @ of_unit) / images**2
        design_effect = max(variance * images / (share * (1 - share)), 1)
        t = float(student_t.ppf(0.975, count - 1))
        effective = images / design_effect * (_NORMAL_97_5 / t) ** 2
    return _wilson(share, effective)


def _wilson(share: float, trials: float) -> Interval:
    """Wilson's interval of a share; the number of trials need not be whole."""
    more = _NORMAL_97_5**2 / trials
    middle = (share + more / 2) / (1 + more)
    spread = math.sqrt(more * (share * (1 - share) + more / 4)) / (1 + more)
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


def paired_interval(lost: int, won: int, trials: int) -> Interval:
    """Interval of the difference of two proportions that were measured on the same trials.

    Half a trial is added to each of the four possible outcomes (Agresti and Min 2005, Statistics in Medicine
    24(5), "Wald+2"), so that it has a width even if the two never differ.

    Args:
        lost: Trials that only the first had right.
        won: Trials that only the second had right.
        trials: All trials.

    Returns:
        Of the first proportion minus the second.
    """
    lost_more, won_more, more = lost + 0.5, won + 0.5, trials + 2
    difference = (lost_more - won_more) / more
    spread = math.sqrt((lost_more + won_more) / more - difference**2) / math.sqrt(more)
    return max(difference - _NORMAL_97_5 * spread, -1.0), min(difference + _NORMAL_97_5 * spread, 1.0)


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of K independent estimates, from their own intervals.

    The distances of the limits add like standard errors (Zou and Donner 2008, Statistics in Medicine 27(10),
    "MOVER"); unlike a bootstrap's, they do not vanish where every estimate is 1.

    Args:
        values: (K,) estimates.
        intervals: (K,) their intervals.
    """
    mean = sum(values) / len(values)
    below = math.hypot(*(value - low for value, (low, _) in zip(values, intervals, strict=True)))
    above = math.hypot(*(high - value for value, (_, high) in zip(values, intervals, strict=True)))
    return mean - below / len(values), mean + above / len(values)


def auroc_interval(auroc: float, positives: int, negatives: int) -> Interval:
    """Interval of an area under the ROC curve (Newcombe 2006, Statistics in Medicine 25(4), method 5).

    It holds the areas θ that are at most 1.96 of their own standard errors away from the estimate; with one
    image on each side it is Wilson's.

    Args:
        auroc: Estimated area.
        positives: Number of images of the class.
        negatives: Number of other images.
    """
    pairs, balanced = positives * negatives, (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + balanced * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - auroc) ** 2 - _NORMAL_97_5**2 * theta * (1 - theta) * spread / pairs

    # Between the limits the excess is negative; at an estimate of 0 or 1 it is 0, as at that limit. The root
    # is as exact as floats are: what counts is its distance from 0 or 1, which may be tiny.
    edge, exact = 1e-12, 1e-16
    low = float(brentq(excess, 0.0, min(auroc, 1 - edge), xtol=exact)) if auroc > edge else 0.0
    high = float(brentq(excess, max(auroc, edge), 1.0, xtol=exact)) if auroc < 1 - edge else 1.0
    return low, high
