"""What prediction sets and rejection do on labeled images: the coverage that is reached, and what is kept.

Shapes: N images, K classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.classifier import SET_SEPARATOR, Classifier, softmax
from skipnets.uncertainty import prediction_sets

__all__ = ["Selective", "select", "selective_rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selective:
    """Prediction sets and rejected images of an evaluation, each where it was asked for.

    Attributes:
        coverage: The coverage asked for.
        sets: (N, K) whether a class is in an image's set.
        reject: The share of the most unusual images that is to be rejected.
        p_values: (N,) how usual each image is.
        rejected: (N,) whether it is rejected.
    """

    coverage: float | None = None
    sets: NDArray[np.bool_] | None = None
    reject: float | None = None
    p_values: NDArray[np.float64] | None = None
    rejected: NDArray[np.bool_] | None = None

    def measure(self, right: NDArray[np.bool_], labels: NDArray[Any]) -> dict[str, Any]:
        """Entries of evaluation.json: "prediction_sets" and "rejection".

        Args:
            right: (N,) whether each image is predicted right; of several labels, all that are known.
            labels: (N,) true classes, for the sets; (N, K) where there are none.
        """
        from skipnets.evaluation.intervals import wilson_interval  # loads SciPy, which tables do not need

        found: dict[str, Any] = {}
        if self.sets is not None:
            covered = self.sets[np.arange(len(labels)), labels]
            sizes = self.sets.sum(1)
            found["prediction_sets"] = {
                "coverage": self.coverage,
                "measured": float(covered.mean()),
                "interval": list(wilson_interval(int(covered.sum()), len(covered))),
                "mean_size": float(sizes.mean()),
                "single": float((sizes == 1).mean()),
            }
        if self.rejected is not None:
            kept, count = right[~self.rejected], int(self.rejected.sum())
            found["rejection"] = {
                "reject": self.reject,
                "rejected": count / len(right),
                "interval": list(wilson_interval(count, len(right))),
                "kept": len(kept),
                "accuracy_kept": float(kept.mean()) if len(kept) else None,
                "accuracy_rejected": float(right[self.rejected].mean()) if count else None,
            }
        return found

    def columns(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Columns of a table of predictions: `set`, `p_value` and `rejected`, where there are any."""
        columns: dict[str, Any] = {}
        if self.sets is not None:
            names = np.array(classes, dtype=object)
            columns["set"] = [SET_SEPARATOR.join(names[chosen]) for chosen in self.sets]
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
        features: (N, F) embeddings, where the score for outliers needs them.
        coverage: As of `Classifier.predict`.
        reject: As of `Classifier.predict`.
    """
    uncertainty = classifier.uncertainty
    if uncertainty is None or (coverage is None and reject is None):
        return None
    sets = p_values = rejected = None
    if coverage is not None and uncertainty.sets is not None:
        sets = prediction_sets(softmax(logits, classifier.temperature), uncertainty.sets, coverage)
    if reject is not None:
        p_values = uncertainty.outliers.p_values(logits, features)
        rejects = uncertainty.outliers.calibration.rejects
        rejected = np.array([rejects(value, reject) for value in p_values.tolist()])
    return Selective(coverage=coverage, sets=sets, reject=reject, p_values=p_values, rejected=rejected)


def selective_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Rows for the table of an evaluation, from the entries of `Selective.measure`."""
    rows = {}
    if sets := metrics.get("prediction_sets"):
        low, high = sets["interval"]
        rows[f"sets with coverage {sets['coverage']:g}"] = (
            f"{sets['measured']:.2%} covered  (95% interval {low:.2%} to {high:.2%}), "
            f"{sets['mean_size']:.2f} classes on average"
        )
    if rejection := metrics.get("rejection"):
        low, high = rejection["interval"]
        rows[f"rejected at {rejection['reject']:g}"] = (
            f"{rejection['rejected']:.2%} of the images  (95% interval {low:.2%} to {high:.2%})"
        )
        right = "all labels right" if metrics.get("task") == "multi-label" else "accuracy"
        for part in ("kept", "rejected"):
            if (value := rejection[f"accuracy_{part}"]) is not None:
                rows[f"{right} where {part}"] = f"{value:.2%}"
    return rows
