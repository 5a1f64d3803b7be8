"""Metrics of a multi-label classifier; undefined ones (no images to compute them from) are NaN, never 0 or 1.

Images whose label is not known count for no metric of this label. Intervals are the bootstrap's (Efron 1979),
which draws images with replacement, or whole groups of them where images of one patient are alike. Average
precision is biased in resamples, as an image that is drawn several times ties with itself, which raises the
precision at its rank. The bias does not become smaller in the mean over labels, but the spread does, so that
an interval need not contain its own value: it is shifted by how far the median of the resamples is off.

Shapes: N images, K labels, B resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from skipnets.evaluation.intervals import Interval, auroc_interval, wilson_interval
from skipnets.evaluation.ratios import defined_mean, ratio
from skipnets.evaluation.reliability import binary_reliability
from skipnets.probabilities import sigmoid

__all__ = [
    "LABEL_METRICS",
    "SUMMARIES",
    "MultiLabelMetrics",
    "all_right",
    "binary_nll",
    "draws",
    "group_numbers",
    "measure_labels",
    "percentiles",
    "ranking_metrics",
]

RESAMPLES = 1000
LABEL_METRICS = ("auroc", "average_precision", "sensitivity", "specificity", "precision", "f1")
"""The metrics of each label that have intervals, means over the labels, and values over all pairs."""
SUMMARIES = ("macro", "micro")

_AT_ONCE = 4_000_000  # numbers of a chunk of resamples
# Ranking takes about N × K × B steps; above this number (half a minute), what depends on it is not resampled.
_MOST_RANKING = 1e9

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelMetrics:
    """Metrics of a multi-label classifier on labeled images.

    Attributes:
        labels: Name of a metric → (K,) its values. "auroc": probability that an image with the label is
            ranked above one without. "average_precision": area under precision over recall, as scikit-learn
            sums it. At the label's threshold, "sensitivity": share of the images with it that are found;
            "specificity": share of those without it that are left out; "precision": share of those found that
            have it; "f1": harmonic mean of precision and sensitivity.
        intervals: Name → (K, 2) 95% intervals; NaN where there is none.
        macro: Name → mean over the labels for which it is defined.
        micro: Name → value over all (image, label) pairs together.
        macro_intervals: Name → 95% interval; None where there is none.
        micro_intervals: Name → 95% interval; None where there is none.
        ece: (K,) expected calibration error: mean difference between the probability and the share of images
            that have the label, over 15 bins of equal width, weighted by their images.
        nll: Mean negative log-likelihood of a known label of an image, in nats.
        exact: Share of images all of whose known labels are right.
        present: (K,) images that have the label.
        absent: (K,) images that do not.
        unknown: (K,) images of which it is not known.
        groups: G that were drawn; None where single images were.
    """

    labels: Mapping[str, Floats]
    intervals: Mapping[str, Floats]
    macro: Mapping[str, float]
    micro: Mapping[str, float]
    macro_intervals: Mapping[str, Interval | None]
    micro_intervals: Mapping[str, Interval | None]
    ece: Floats
    nll: float
    exact: float
    present: NDArray[np.int64]
    absent: NDArray[np.int64]
    unknown: NDArray[np.int64]
    groups: int | None


def ranking_metrics(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]
) -> dict[str, Floats]:
    """AUROC and average precision of each label, (K,); NaN where no known image has it, or all do.

    Args:
        scores: (N, K) logits or probabilities.
        labels: (N, K), NaN where a label is not known.
    """
    count = labels.shape[1]
    found = {name: np.full(count, np.nan) for name in ("auroc", "average_precision")}
    for index in range(count):
        known = np.isfinite(labels[:, index])
        present, of_label = labels[known, index] == 1, scores[known, index]
        if present.any() and not present.all():
            found["auroc"][index] = roc_auc_score(present, of_label)
            found["average_precision"][index] = average_precision_score(present, of_label)
    return found


def all_right(found: NDArray[np.bool_], labels: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """(N,) whether all known labels of an image are right.

    Args:
        found: (N, K) whether a label counts as present.
        labels: (N, K), NaN where a label is not known.
    """
    right: NDArray[np.bool_] = ((found == (labels == 1)) | np.isnan(labels)).all(1)
    return right


def binary_nll(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]], *, temperature: float = 1.0
) -> float:
    """Mean negative log-likelihood of the known labels, in nats; NaN where none is known.

    It is computed from logits: the probability of what is so may be too small to tell from 0.

    Args:
        logits: (N, K).
        labels: (N, K), NaN where a label is not known.
        temperature: Divides the logits.
    """
    known = np.isfinite(labels)
    if not known.any():
        return float("nan")
    wrong_way = np.where(labels[known] == 1, -1, 1) * logits[known].astype(np.float64) / temperature
    return float(np.logaddexp(0, wrong_way).mean())


def measure_labels(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    thresholds: Sequence[float] | Floats,
    *,
    temperature: float = 1.0,
    groups: NDArray[np.str_] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MultiLabelMetrics:
    """Compute all metrics.

    Args:
        logits: (N, K), N at least 1.
        labels: (N, K), NaN where a label is not known.
        thresholds: K probabilities from which on a label counts as present, or (N, K) for each image.
        temperature: Divides the logits.
        groups: (N,) what is drawn as a whole, such as a patient; "" for an image alone. None draws images.
        resamples: B; 0 computes no intervals.
        seed: Seed of the draws.
    """
    probabilities = sigmoid(logits, temperature)
    known = np.isfinite(labels)
    has = np.where(known, labels, 0) == 1
    found = (probabilities >= np.asarray(thresholds)) & known
    statistics = _Statistics(logits, found, has, known, resamples)
    unit = np.ones((1, len(labels)))
    values = {name: value[0] for name, value in statistics.label_metrics(unit).items()}
    # By logits: probabilities near 1 are rounded, and would tie.
    values |= ranking_metrics(logits, labels)
    flat = ranking_metrics(logits[known][:, None], labels[known][:, None])
    micro = {name: float(value[0, 0]) for name, value in statistics.pooled_metrics(unit).items()}
    micro |= {name: float(value[0]) for name, value in flat.items()}
    macro = {name: defined_mean(values[name]) for name in LABEL_METRICS}

    units, drawn = group_numbers(groups, len(labels))
    samples: dict[str, list[Floats]] = {}
    # Of one group there is but one resample, the group itself.
    for weights in draws(units, resamples if drawn > 1 else 0, seed, width=labels.size):
        of_labels, pooled = statistics.label_metrics(weights), statistics.pooled_metrics(weights)
        if statistics.ranks:
            of_labels |= statistics.label_rankings(weights)
            pooled |= statistics.pooled_rankings(weights)
        for name in of_labels:
            samples.setdefault(name, []).append(of_labels[name])
            samples.setdefault(f"macro {name}", []).append(_row_means(of_labels[name])[:, None])
            samples.setdefault(f"micro {name}", []).append(pooled[name])
    joined = {name: np.concatenate(parts) for name, parts in samples.items()}
    limits = {name: percentiles(drawn_values) for name, drawn_values in joined.items()}
    of_data = {
        "average_precision": values["average_precision"],
        "macro average_precision": np.array([macro["average_precision"]]),
        "micro average_precision": np.array([micro["average_precision"]]),
    }
    for name in limits.keys() & of_data.keys():
        limits[name] = _unbiased(limits[name], joined[name], of_data[name])
    nothing = np.full((labels.shape[1], 2), np.nan)
    absent = known & ~has
    intervals = {name: limits.get(name, nothing).copy() for name in LABEL_METRICS}
    if resamples:
        _replace_without_spread(
            values,
            intervals,
            present=_count_units(has, units),
            absent=_count_units(absent, units),
            found=_count_units(found, units),
        )
    return MultiLabelMetrics(
        labels=values,
        intervals=intervals,
        macro=macro,
        micro=micro,
        macro_intervals={name: _interval(limits.get(f"macro {name}"), macro[name]) for name in LABEL_METRICS},
        micro_intervals={name: _interval(limits.get(f"micro {name}"), micro[name]) for name in LABEL_METRICS},
        ece=np.array(
            [
                binary_reliability(probabilities[of, index], has[of, index]).ece if of.any() else np.nan
                for index, of in enumerate(known.T)
            ]
        ),
        nll=binary_nll(logits, labels, temperature=temperature),
        exact=float(all_right(found, labels)[known.any(1)].mean()) if known.any() else float("nan"),
        present=has.sum(0),
        absent=absent.sum(0),
        unknown=(~known).sum(0),
        groups=None if groups is None else drawn,
    )


class _Statistics:
    """Statistics of each image, ready to be weighted.

    Args:
        scores: (N, K) logits.
        found: (N, K) whether the label counts as present.
        has: (N, K) whether the image has the label.
        known: (N, K) whether that is known.
        resamples: B.
    """

    def __init__(
        self,
        scores: NDArray[np.floating[Any]],
        found: NDArray[np.bool_],
        has: NDArray[np.bool_],
        known: NDArray[np.bool_],
        resamples: int,
    ) -> None:
        self.hits, self.present = (found & has).astype(np.float64), has.astype(np.float64)
        self.found = found.astype(np.float64)
        self.left_out = (~found & ~has & known).astype(np.float64)
        self.absent = (known & ~has).astype(np.float64)
        self.ranks = scores.size * resamples <= _MOST_RANKING
        self.rankings = [
            WeightedRanking(scores[of, index], has[of, index]) for index, of in enumerate(known.T)
        ]
        self.known = [np.flatnonzero(of) for of in known.T]
        self.image_of_pair = np.nonzero(known)[0]
        self.pooled = WeightedRanking(scores[known], has[known])

    def label_metrics(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B, K): what depends on the thresholds."""
        return self._at_thresholds(
            *(weights @ part for part in (self.hits, self.present, self.found, self.left_out, self.absent))
        )

    def pooled_metrics(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B, 1): the same over all pairs."""
        parts = (self.hits, self.present, self.found, self.left_out, self.absent)
        return self._at_thresholds(*((weights @ part.sum(1))[:, None] for part in parts))

    def label_rankings(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B, K): what depends on the order of the images."""
        pairs = [ranking.areas(weights[:, of]) for ranking, of in zip(self.rankings, self.known, strict=True)]
        return {
            "auroc": np.stack([auroc for auroc, _ in pairs], axis=1),
            "average_precision": np.stack([precision for _, precision in pairs], axis=1),
        }

    def pooled_rankings(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B, 1): the same over all pairs."""
        auroc, precision = self.pooled.areas(weights[:, self.image_of_pair])
        return {"auroc": auroc[:, None], "average_precision": precision[:, None]}

    @staticmethod
    def _at_thresholds(
        hits: Floats, present: Floats, found: Floats, left_out: Floats, absent: Floats
    ) -> dict[str, Floats]:
        return {
            "sensitivity": ratio(hits, present),
            "specificity": ratio(left_out, absent),
            "precision": ratio(hits, found),
            # Of a label that no image has, and that was found in none, nothing is known.
            "f1": ratio(2 * hits, np.where(present > 0, present + found, 0)),
        }


class WeightedRanking:
    """Images in the order of a label's probability, to compute areas under curves with weights.

    Args:
        scores: (n,) probabilities of the label.
        has: (n,) whether an image has it.
    """

    def __init__(self, scores: NDArray[np.floating[Any]], has: NDArray[np.bool_]) -> None:
        order = np.argsort(-scores, kind="stable")
        self.positive, self.negative = order[has[order]], order[~has[order]]
        of_positive, of_negative = -scores[self.positive], -scores[self.negative]
        # How many of the others are above each image that has the label, and how many are not below it.
        self.above = np.searchsorted(of_negative, of_positive, side="left")
        self.not_below = np.searchsorted(of_negative, of_positive, side="right")
        # The last of the images that have the label and the same score.
        self.tied = np.searchsorted(of_positive, of_positive, side="right") - 1

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """(B, n) weights → (B,) AUROC, of which ties count half, and (B,) average precision."""
        ours = weights[:, self.positive]
        others = np.zeros((len(weights), len(self.negative) + 1))
        np.cumsum(weights[:, self.negative], axis=1, out=others[:, 1:])
        present, absent = ours.sum(1), others[:, -1]
        misses = others[:, self.not_below]
        below = absent[:, None] - (others[:, self.above] + misses) / 2
        auroc = ratio((ours * below).sum(1), present * absent)
        hits = np.cumsum(ours, axis=1)[:, self.tied]
        precision = np.divide(hits, hits + misses, out=np.zeros_like(hits), where=hits > 0)
        average = ratio((ours * precision).sum(1), present)
        return auroc, np.where(absent > 0, average, np.nan)


def group_numbers(groups: NDArray[np.str_] | None, count: int) -> tuple[NDArray[np.int64], int]:
    """(N,) the number of what each image belongs to, or of itself, and how many numbers there are."""
    if groups is None:
        return np.arange(count), count
    names, number = np.unique(groups, return_inverse=True)
    number = np.where(groups == "", len(names) + np.arange(count), number)
    _, number = np.unique(number, return_inverse=True)
    return number, int(number.max()) + 1


def draws(units: NDArray[np.int64], resamples: int, seed: int, *, width: int) -> Iterator[Floats]:
    """Weights of the images in chunks of (b, N): how often the unit of each was drawn."""
    generator = np.random.default_rng(seed)
    count = int(units.max()) + 1
    most = max(_AT_ONCE // width, 1)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, units].astype(np.float64)


def _count_units(images: NDArray[np.bool_], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, K) images of each label → (K,) how many units they belong to."""
    return np.array([len(np.unique(units[of])) for of in images.T])


def _replace_without_spread(
    values: Mapping[str, Floats],
    intervals: Mapping[str, Floats],
    *,
    present: NDArray[np.int64],
    absent: NDArray[np.int64],
    found: NDArray[np.int64],
) -> None:
    """Replace intervals where resamples do not show how much a metric varies.

    At 0 or 1 every resample is the same. Where the images that count are all of one unit (one patient, one
    image), no resample has others. Wilson's or Newcombe's interval stands there, for as many trials as there
    are units, or none.

    Args:
        values: Metric → (K,).
        intervals: Metric → (K, 2), which are changed.
        present: (K,) units with images that have the label.
        absent: (K,) units with images that do not.
        found: (K,) units with images in which it is found.
    """
    for name, units in (("sensitivity", present), ("specificity", absent), ("precision", found)):
        intervals[name][units < 2] = np.nan
        for index in _at_edge(values[name]):
            count = int(units[index])
            intervals[name][index] = wilson_interval(round(values[name][index] * count), count)
    one_unit = np.minimum(present, absent) < 2
    for index in np.flatnonzero(np.isfinite(values["auroc"])):
        area = float(values["auroc"][index])
        if one_unit[index] or area in (0, 1):
            intervals["auroc"][index] = auroc_interval(area, int(present[index]), int(absent[index]))
    for name in ("average_precision", "f1"):
        intervals[name][present < 2] = np.nan
        intervals[name][_at_edge(values[name])] = np.nan


def _at_edge(values: Floats) -> NDArray[np.int64]:
    return np.flatnonzero((values == 0) | (values == 1))


def percentiles(samples: Floats) -> Floats:
    """(B, K) → (K, 2) 95% intervals; NaN where less than half of the resamples define the metric."""
    limits = np.full((samples.shape[1], 2), np.nan)
    for index, column in enumerate(samples.T):
        defined = column[np.isfinite(column)]
        if len(defined) > len(column) / 2:
            limits[index] = np.percentile(defined, (2.5, 97.5))
    return limits


def _unbiased(limits: Floats, samples: Floats, values: Floats) -> Floats:
    """(K, 2) intervals, shifted by how far the medians of (B, K) resamples are from the (K,) values."""
    shifted = limits.copy()
    for index in np.flatnonzero(np.isfinite(limits).all(1)):
        shift = values[index] - np.nanmedian(samples[:, index])
        shifted[index] = np.clip(limits[index] + shift, 0, 1)
    return shifted


def _interval(limits: Floats | None, value: float) -> Interval | None:
    if limits is None or not np.isfinite(limits).all() or value in (0, 1):
        return None
    return float(limits[0, 0]), float(limits[0, 1])


def _row_means(values: Floats) -> Floats:
    """(B, K) → (B,) means of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0).sum(1), defined.sum(1).astype(np.float64))
