"""Tables of metrics, as printed and as shown in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skipnets.evaluation.fold_table import fold_table
from skipnets.evaluation.saving import images_row, inputs_noun, note_tables
from skipnets.evaluation.selective import selective_rows
from skipnets.tables import make_table, number_text, percent, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["headline", "metric_tables"]

_FOLD_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", percent),
    "balanced_accuracy": ("balanced accuracy", percent),
    "nll": ("NLL", "{:.4f}".format),
    "macro_auroc": ("macro AUROC", "{:.4f}".format),
}


def headline(metrics: Mapping[str, Any]) -> str:
    """The first metric of the contents of evaluation.json with its interval, in a few words."""
    if metrics.get("task") == "multi-label":
        auroc = metrics["macro"]["auroc"]
        if auroc["value"] is None:
            return "mean AUROC undefined"
        return f"mean AUROC {auroc['value']:.3f}{_limits(auroc['interval'], '{:.3f}'.format)}"
    if metrics.get("task") == "regression":
        row = metrics["targets"][0]
        undefined = "undefined" if row["mae"] is None else number_text(row["mae"])
        interval = row["intervals"]["mae"]
        of_target = f" of {row['name']}" if len(metrics["targets"]) > 1 else ""
        return f"MAE{of_target} {undefined}{_limits(interval, number_text)}"
    low, high = metrics["accuracy_interval"]
    return f"accuracy {percent(metrics['accuracy'])}  (95% interval {percent(low)} to {percent(high)})"


def metric_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of the contents of evaluation.json: overall metrics, metrics of each class, and caveats."""
    if metrics.get("task") == "multi-label":
        from skipnets.evaluation.multi_label_evaluation import multi_label_tables

        return multi_label_tables(metrics)
    if metrics.get("task") == "regression":
        from skipnets.evaluation.regression_evaluation import regression_tables

        return regression_tables(metrics)
    low, high = metrics["accuracy_interval"]
    noun = inputs_noun(metrics)
    rows = {
        **images_row(metrics),
        "accuracy": f"{percent(metrics['accuracy'])}  (95% interval {percent(low)} to {percent(high)})",
        "interval": "" if metrics.get("groups") is None else f"over {metrics['groups']:,} groups of {noun}",
        "balanced accuracy": percent(metrics["balanced_accuracy"]),
        "top-5 accuracy": "" if metrics["top5"] is None else percent(metrics["top5"]),
        "negative log-likelihood": f"{metrics['nll']:.4f}",
        "expected calibration error (ECE)": percent(metrics["ece"]),
        "macro AUROC": _share(metrics["macro_auroc"], digits=4),
        **selective_rows(metrics),
    }
    classes = make_table(
        {
            "class": "left",
            "precision": "right",
            "recall": "right",
            "F1": "right",
            "AUROC": "right",
            inputs_noun(metrics): "right",
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
    folds = (
        [fold_table(metrics["folds"], metrics["between_folds"], _FOLD_COLUMNS, noun=inputs_noun(metrics))]
        if "folds" in metrics
        else []
    )
    return [
        overall,
        *folds,
        classes,
        *note_tables(metrics),
    ]


def _limits(interval: Sequence[float] | None, as_text: Callable[[float], str]) -> str:
    if interval is None:
        return ""
    return f"  (95% interval {as_text(interval[0])} to {as_text(interval[1])})"


def _share(value: float | None, *, digits: int) -> str:
    """A value, or a dash where it is undefined (no images to compute it from)."""
    return "–" if value is None else f"{value:.{digits}f}"
