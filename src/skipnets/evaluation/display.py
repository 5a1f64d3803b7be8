"""The metrics of an evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skipnets.tables import make_table, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["metric_tables"]


def metric_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The metrics of `Evaluation.to_dict()` over all classes, those of each class, and what to beware of."""
    low, high = metrics["accuracy_interval"]
    rows = {
        "images": f"{metrics['images']:,} ({metrics['data']}, {metrics['split']})",
        "accuracy": f"{metrics['accuracy']:.2%}  (95 % interval {low:.2%} to {high:.2%})",
        "balanced accuracy": f"{metrics['balanced_accuracy']:.2%}",
        "top-5 accuracy": "" if metrics["top5"] is None else f"{metrics['top5']:.2%}",
        "negative log-likelihood": f"{metrics['nll']:.4f}",
        "calibration error (ECE)": f"{metrics['ece']:.2%}",
        "mean AUROC": _share(metrics["macro_auroc"], digits=4),
    }
    classes = make_table(
        {
            "class": "left",
            "precision": "right",
            "recall": "right",
            "F1": "right",
            "AUROC": "right",
            "images": "right",
        },
        (
            [
                row["name"],
                *(_share(row[key], digits=3) for key in ("precision", "recall", "f1", "auroc")),
                f"{row['support']:,}",
            ]
            for row in metrics["classes"]
        ),
    )
    overall = properties_table({name: value for name, value in rows.items() if value})
    return [overall, classes, *(properties_table({"note": warning}) for warning in metrics["warnings"])]


def _share(value: float | None, *, digits: int) -> str:
    """A share, or a dash where it is undefined: nothing is there to be right or wrong about."""
    return "–" if value is None else f"{value:.{digits}f}"
