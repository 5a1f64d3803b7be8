"""Bootstrap (Efron 1979): how much metrics would vary with other test images.

Drawing N of N images with replacement weights each image by how often it was drawn; where images of one
patient are alike, patients are drawn. All resamples of a metric are then a few products of the (B, N) weights
with statistics of each image.

Shapes: N images, K classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from skipnets.evaluation.intervals import Interval
from skipnets.evaluation.ratios import ratio
from skipnets.evaluation.reliability import CALIBRATION_BINS, confidence_bin

__all__ = ["METRICS", "bootstrap_p", "resample", "spread_interval", "weighted_metrics"]

# Name → whether more is better.
METRICS = {
    "accuracy": True,
    "top5": True,
    "balanced_accuracy": True,
    "macro_f1": True,
    "macro_auroc": True,
    "nll": False,
    "ece": False,
}
_AT_ONCE = 64
# Ranking takes N × K × B steps; above this number (half a minute), AUROC is not resampled.
_MOST_RANKING = 4e9

Floats = NDArray[np.float64]


def resample(
    probabilities: list[Floats],
    labels: NDArray[np.int64],
    *,
    units: NDArray[np.int64] | None = None,
    resamples: int,
    seed: int,
) -> list[dict[str, Floats]]:
    """Resample every metric of several classifiers on the same random draws of images.

    Args:
        probabilities: (N, K) of each classifier.
        labels: (N,) true classes.
        units: (N,) the number of what each image belongs to, from 0, which is drawn as a whole. None draws
            images.
        resamples: B.
        seed: Seed of the draws.

    Returns:
        For each classifier, name → (B,); without "top5" up to 5 classes, and without "macro_auroc" where
        that would take too long.
    """
    ranked = probabilities[0].size * resamples <= _MOST_RANKING
    classifiers = [_Predictions(each, labels, ranked=ranked) for each in probabilities]
    chunks: list[list[dict[str, Floats]]] = [[] for _ in classifiers]
    units = np.arange(len(labels)) if units is None else units
    for weights in _draws(units, resamples, seed):
        for chunk, predictions in zip(chunks, classifiers, strict=True):
            chunk.append(predictions.metrics(weights))
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in chunks]


def weighted_metrics(probabilities: Floats, labels: NDArray[np.int64], weights: Floats) -> dict[str, Floats]:
    """The metrics of `measure` with weighted images, (B, N) → name → (B,)."""
    return _Predictions(probabilities, labels, ranked=True).metrics(weights)


def bootstrap_p(spread: Floats) -> float:
    """Two-sided p-value: twice the smaller share of resamples on either side of zero, never quite 0.

    Args:
        spread: (B,) a difference in each resample.
    """
    spread = spread[np.isfinite(spread)]
    tail = min((spread <= 0).sum(), (spread >= 0).sum())
    return min(1.0, 2 * (int(tail) + 1) / (len(spread) + 1))


def spread_interval(sample: Floats) -> Interval:
    """The 95% interval of (B,) resamples: their percentiles."""
    low, high = np.nanpercentile(sample, [2.5, 97.5])
    return float(low), float(high)


def _draws(units: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """Weights of the images in chunks of (b, N)."""
    count = int(units.max()) + 1
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, units].astype(np.float64)


class _Predictions:
    """Statistics of each image, ready to be weighted."""

    def __init__(self, probabilities: Floats, labels: NDArray[np.int64], *, ranked: bool) -> None:
        count, classes = probabilities.shape
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        right = (predicted == labels).astype(np.float64)
        of_label = probabilities[np.arange(count), labels]
        each = [right, -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))]
        if classes > 5:
            each.append((np.argsort(-probabilities, axis=1)[:, :5] == labels[:, None]).any(1).astype(float))
        self.sums = np.stack(each, axis=1)
        self.gaps = np.eye(CALIBRATION_BINS)[confidence_bin(confidence)] * (confidence - right)[:, None]
        self.label = np.eye(classes)[labels]
        self.prediction = np.eye(classes)[predicted]
        self.hit = self.label * right[:, None]
        self.rankings = [
            _Ranking(probabilities[:, index], labels == index) for index in range(classes if ranked else 0)
        ]

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B,)."""
        total = weights.sum(1)
        means = (weights @ self.sums) / total[:, None]
        support, predicted, hits = weights @ self.label, weights @ self.prediction, weights @ self.hit
        occurs = support > 0
        means_by_name = {
            "accuracy": means[:, 0],
            "balanced_accuracy": _mean(hits / np.where(occurs, support, 1), occurs),
            "macro_f1": _mean(2 * hits / np.maximum(support + predicted, 1e-300), occurs),
            "nll": means[:, 1],
            "ece": np.abs(weights @ self.gaps).sum(1) / total,
        }
        if means.shape[1] > 2:
            means_by_name["top5"] = means[:, 2]
        if self.rankings:
            areas = np.stack([ranking.auroc(weights) for ranking in self.rankings], axis=1)
            means_by_name["macro_auroc"] = _mean(np.nan_to_num(areas), np.isfinite(areas))
        return means_by_name


class _Ranking:
    """The images in the order of one class's probability."""

    def __init__(self, scores: Floats, is_class: NDArray[np.bool_]) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.is_class = is_class[self.order]
        # Where the images of equal probability begin and end.
        of_class = ordered[self.is_class]
        self.first = np.searchsorted(ordered, of_class, side="left")
        self.last = np.searchsorted(ordered, of_class, side="right")

    def auroc(self, weights: Floats) -> Floats:
        """(B, N) weights → (B,): the share of (this class, another) pairs in order; ties count half."""
        ordered = weights[:, self.order]
        of_class = ordered[:, self.is_class]
        others = np.zeros((len(weights), len(self.order) + 1))
        np.cumsum(np.where(self.is_class, 0, ordered), axis=1, out=others[:, 1:])
        below = (others[:, self.first] + others[:, self.last]) / 2
        pairs = of_class.sum(1) * others[:, -1]
        return ratio((of_class * below).sum(1), pairs)


def _mean(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """(B, K) → (B,) means over the classes that count; NaN where none does."""
    return ratio(np.where(where, values, 0).sum(1), where.sum(1))
