"""Tables of metrics, as printed and as shown in notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skipnets.evaluation.selective import selective_rows
from skipnets.tables import make_table, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["headline", "metric_tables"]


def headline(metrics: Mapping[str, Any]) -> str:
    """The first metric of the contents of evaluation.json with its interval, in a few words."""
    if metrics.get("task") == "multi-label":
        auroc = metrics["macro"]["auroc"]
        if auroc["value"] is None:
            return "mean AUROC undefined"
        interval = auroc["interval"]
        limits = "" if interval is None else f"  (95% interval {interval[0]:.3f} to {interval[1]:.3f})"
        return f"mean AUROC {auroc['value']:.3f}{limits}"
    low, high = metrics["accuracy_interval"]
    return f"accuracy {metrics['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%})"


def metric_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of the contents of evaluation.json: overall metrics, metrics of each class, and caveats."""
    if metrics.get("task") == "multi-label":
        from skipnets.evaluation.multi_label_evaluation import multi_label_tables

        return multi_label_tables(metrics)
    if metrics.get("task") == "regression":
        from skipnets.evaluation.regression_evaluation import regression_tables

        return regression_tables(metrics)
    low, high = metrics["accuracy_interval"]
    rows = {
        "images": f"{metrics['images']:,} ({metrics['data']}, {metrics['split']})",
        "test-time augmentation": metrics.get("tta", ""),
        "accuracy": f"{metrics['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%})",
        "balanced accuracy": f"{metrics['balanced_accuracy']:.2%}",
        "top-5 accuracy": "" if metrics["top5"] is None else f"{metrics['top5']:.2%}",
        "negative log-likelihood": f"{metrics['nll']:.4f}",
        "expected calibration error (ECE)": f"{metrics['ece']:.2%}",
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
    folds = [_fold_table(metrics)] if "folds" in metrics else []
    return [
        overall,
        *folds,
        classes,
        *(properties_table({"note": warning}) for warning in metrics["warnings"]),
    ]


def _fold_table(metrics: Mapping[str, Any]) -> Table:
    """Metrics of each fold, their mean and their standard deviation."""
    columns = {
        "accuracy": ("accuracy", "{:.2%}"),
        "balanced_accuracy": ("balanced accuracy", "{:.2%}"),
        "nll": ("NLL", "{:.4f}"),
        "macro_auroc": ("macro AUROC", "{:.4f}"),
    }

    def cells(values: Mapping[str, Any]) -> list[str]:
        return [
            "–" if values.get(key) is None else pattern.format(values[key])
            for key, (_, pattern) in columns.items()
        ]

    spread = metrics["between_folds"]
    summary = [
        [name, "", "", *cells({key: value[statistic] for key, value in spread.items()})]
        for name, statistic in (("mean", "mean"), ("standard deviation", "std"))
    ]
    headings: dict[str, Any] = {"fold": "left", "images": "right", "best epoch": "right"}
    return make_table(
        headings | {title: "right" for title, _ in columns.values()},
        [
            *(
                [str(row["fold"]), f"{row['images']:,}", str(row["best_epoch"]), *cells(row)]
                for row in metrics["folds"]
            ),
            *summary,
        ],
    )


def _share(value: float | None, *, digits: int) -> str:
    """A value, or a dash where it is undefined (no images to compute it from)."""
    return "–" if value is None else f"{value:.{digits}f}"
