"""What sets, intervals and rejection do on labeled images: the coverage that is reached, and what is kept.

Shapes: N images, K classes or labels, T targets, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS, worded
from skipnets.classifier import Classifier
from skipnets.prediction import SET_SEPARATOR
from skipnets.selection import Selection
from skipnets.tables import number_text, percent

__all__ = ["Selective", "select", "selective_rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selective(Selection):
    """Prediction sets or intervals and rejected images of an evaluation, each where it was asked for."""

    def measure(
        self, right: NDArray[np.bool_], labels: NDArray[Any], groups: NDArray[np.str_] | None = None
    ) -> dict[str, Any]:
        """Entries of evaluation.json: "prediction_sets" and "rejection".

        Args:
            right: (N,) whether each image is predicted right; of several labels, all that are known.
            labels: (N,) true classes, or (N, K) labels, NaN where unknown.
            groups: (N,) what images belong to; None where each stands alone.
        """
        found: dict[str, Any] = {}
        units = _units(groups, len(right))
        if self.sets is not None:
            of_task = _measure_sets if labels.ndim == 1 else _measure_label_sets
            found["prediction_sets"] = {"coverage": self.coverage, **of_task(self.sets, labels, units)}
        if self.rejected is not None:
            known = np.isfinite(labels).reshape(len(labels), -1).any(1)
            found["rejection"] = self._rejection(units) | {
                f"accuracy_{part}": float(right[chosen & known].mean()) if (chosen & known).any() else None
                for part, chosen in (("kept", ~self.rejected), ("rejected", self.rejected))
            }
        return found

    def measure_numbers(
        self,
        numbers: NDArray[np.float64],
        predicted: NDArray[np.float64],
        targets: Sequence[str],
        groups: NDArray[np.str_] | None = None,
    ) -> dict[str, Any]:
        """Entries of evaluation.json of a regression: "prediction_intervals" and "rejection".

        Args:
            numbers: (N, T) what is right, NaN where it is not known.
            predicted: (N, T).
            targets: T names.
            groups: (N,) what images belong to; None where each stands alone.
        """
        found: dict[str, Any] = {}
        units = _units(groups, len(numbers))
        known = np.isfinite(numbers)
        if self.intervals is not None:
            rows = []
            for index, name in enumerate(targets):
                of = known[:, index]
                low, high = self.intervals[of, index].T
                inside = _within(numbers[of, index], low, high)
                rows.append(
                    {
                        "name": name,
                        "measured": float(inside.mean()) if len(inside) else None,
                        "interval": _share_interval(inside, units, of),
                        "mean_width": float((high - low).mean()) if len(inside) else None,
                    }
                )
            found["prediction_intervals"] = {"coverage": self.coverage, "targets": rows}
            if len(targets) > 1 and len(whole := np.flatnonzero(known.all(1))):
                low, high = self.intervals[whole, :, 0], self.intervals[whole, :, 1]
                at_once = np.asarray(_within(numbers[whole], low, high).all(1))
                found["prediction_intervals"]["all"] = {
                    "measured": float(at_once.mean()),
                    "interval": _share_interval(at_once, units, whole),
                }
        if self.rejected is not None:
            errors = np.abs(predicted - numbers)
            found["rejection"] = self._rejection(units) | {
                f"mae_{part}": [
                    float(errors[chosen & of, index].mean()) if (chosen & of).any() else None
                    for index, of in enumerate(known.T)
                ]
                for part, chosen in (("kept", ~self.rejected), ("rejected", self.rejected))
            }
        return found

    def _rejection(self, units: NDArray[np.int64] | None) -> dict[str, Any]:
        assert self.rejected is not None
        count, images = int(self.rejected.sum()), len(self.rejected)
        return {
            "reject": self.reject,
            "rejected": count / images,
            "interval": _share_interval(self.rejected, units),
            "kept": images - count,
        }

    def columns(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Columns of a table of predictions: `set`, or `low:NAME` and `high:NAME`, `p_value` and `rejected`.

        Each where there is one.
        """
        columns: dict[str, Any] = {}
        if self.sets is not None:
            names = np.array(classes, dtype=object)
            columns["set"] = [SET_SEPARATOR.join(names[chosen]) for chosen in self.sets]
        if self.intervals is not None:
            for index, name in enumerate(classes):
                for end, title in enumerate(("low", "high")):
                    columns[f"{title}:{name}"] = np.ascontiguousarray(self.intervals[:, index, end])
        if self.p_values is not None:
            columns |= {"p_value": self.p_values, "rejected": self.rejected}
        return columns


def select(
    classifier: Classifier,
    logits: NDArray[np.float32],
    features: NDArray[np.float32] | None,
    *,
    coverage: float | None,
    reject: float | None,
) -> Selective | None:
    """Prediction sets and rejected images, as `Classifier.predict` gives them; None if nothing is asked for.

    Args:
        classifier: Calibrated.
        logits: (N, K), not divided by the temperature.
        features: (N, F) embeddings, where `skipnets.selection.needs_features` says so.
        coverage: As of `Classifier.predict`.
        reject: As of `Classifier.predict`.
    """
    if coverage is None and reject is None:
        return None
    return Selective.of(classifier, logits, features, coverage=coverage, reject=reject)


def _units(groups: NDArray[np.str_] | None, images: int) -> NDArray[np.int64] | None:
    """(N,) the numbers of what images belong to; None where each stands alone."""
    from skipnets.evaluation.multi_label import group_numbers  # loads what tables do not need

    return None if groups is None else group_numbers(groups, images)[0]


def _share_interval(
    right: NDArray[np.bool_], units: NDArray[np.int64] | None, of: NDArray[Any] | None = None
) -> list[float] | None:
    """The 95% interval of a share of images; None of none.

    Args:
        right: (n,) whether each of them counts.
        units: (N,) what all images belong to; None where each stands alone.
        of: Which of the N images they are; None: all.
    """
    from skipnets.evaluation.intervals import share_interval

    if not len(right):
        return None
    if units is not None and of is not None:
        units = np.unique(units[of], return_inverse=True)[1]
    return list(share_interval(right, units))


def _measure_sets(
    sets: NDArray[np.bool_], labels: NDArray[np.int64], units: NDArray[np.int64] | None
) -> dict[str, Any]:
    """Of (N, K) sets of classes, how many hold the true one of (N,), and how large they are."""
    covered, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
    return {
        "measured": float(covered.mean()),
        "interval": _share_interval(covered, units),
        "mean_size": float(sizes.mean()),
        "single": float((sizes == 1).mean()),
    }


def _measure_label_sets(
    sets: NDArray[np.bool_], labels: NDArray[np.float32], units: NDArray[np.int64] | None
) -> dict[str, Any]:
    """Of (N, K) sets of labels, which share of an image's labels they hold, and how large they are."""
    from skipnets.evaluation.multi_label import draws, percentiles

    present = labels == 1
    having = present.any(1)
    shares = (sets & present).sum(1)[having] / present.sum(1)[having]
    found: dict[str, Any] = {"measured": None, "interval": None, "mean_size": float(sets.sum(1).mean())}
    if len(shares):
        found["measured"] = float(shares.mean())
        if np.isin(shares, (0, 1)).all():  # then resamples may all be alike
            found["interval"] = _share_interval(shares == 1, units, having)
            return found
        of = np.arange(len(shares)) if units is None else np.unique(units[having], return_inverse=True)[1]
        if of.any():  # of one unit there is but one resample
            drawn = draws(of, 1000, 0, width=len(shares))
            means = [weights @ shares / weights.sum(1) for weights in drawn]
            found["interval"] = percentiles(np.concatenate(means)[:, None])[0].tolist()
    return found


def _within(
    numbers: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether numbers are in their intervals, of which they may be the end: by what floats are rounded to."""
    slack = 1e-9 * (np.abs(low) + np.abs(high))
    return (low - slack <= numbers) & (numbers <= high + slack)


def selective_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Rows for the table of an evaluation, from the entries of `Selective.measure`."""
    rows = {}
    several, dims = metrics.get("task") == "multi-label", metrics.get("dims", 2)
    if sets := metrics.get("prediction_sets"):
        measured = percent(sets["measured"])
        covered, noun = (
            (worded("of an image's labels", dims), "labels") if several else ("covered", "classes")
        )
        rows[f"sets with coverage {sets['coverage']:g}"] = (
            f"{measured} {covered}{_limits(sets['interval'])}, {sets['mean_size']:.2f} {noun} on average"
        )
    if intervals := metrics.get("prediction_intervals"):
        targets = intervals["targets"]
        for target in targets:
            of_target = f" of {target['name']}" if len(targets) > 1 else ""
            rows[f"intervals{of_target} with coverage {intervals['coverage']:g}"] = (
                "–"
                if target["measured"] is None
                else f"{percent(target['measured'])} covered{_limits(target['interval'])}, "
                f"{number_text(target['mean_width'])} wide on average"
            )
        if at_once := intervals.get("all"):
            rows[f"all numbers at once with coverage {intervals['coverage']:g}"] = (
                f"{percent(at_once['measured'])} covered{_limits(at_once['interval'])}"
            )
    if rejection := metrics.get("rejection"):
        rows[f"rejected at {rejection['reject']:g}"] = (
            f"{percent(rejection['rejected'])} of the {INPUTS[dims]}{_limits(rejection['interval'])}"
        )
        right = "all labels right" if several else "accuracy"
        for part in ("kept", "rejected"):
            if (value := rejection.get(f"accuracy_{part}")) is not None:
                rows[f"{right} where {part}"] = percent(value)
            if errors := rejection.get(f"mae_{part}"):
                texts = ["–" if error is None else number_text(error) for error in errors]
                rows[f"MAE where {part}"] = ", ".join(texts)
    return rows


def _limits(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"  (95% interval {percent(low)} to {percent(high)})"
