"""The table of a run with folds: metrics of each fold, their mean and their standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skipnets.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["fold_table"]


def fold_table(
    folds: Sequence[Mapping[str, Any]],
    spread: Mapping[str, Mapping[str, float | None]],
    columns: Mapping[str, tuple[str, Callable[[float], str]]],
    *,
    heading: str = "fold",
    noun: str = "images",
) -> Table:
    """A row for each fold, and two for all.

    Args:
        folds: Of each fold "fold", "images", "best_epoch" and metrics, None where undefined.
        spread: Name of a metric → its "mean" and "std" over the folds.
        columns: Name of a metric → its title, and how its value becomes text.
        heading: Of the first column.
        noun: What was evaluated.
    """

    def cells(values: Mapping[str, float | None]) -> list[str]:
        return [
            "–" if (value := values[name]) is None else as_text(value)
            for name, (_, as_text) in columns.items()
        ]

    headings: dict[str, Any] = {heading: "left", noun: "right", "best epoch": "right"}
    return make_table(
        headings | {title: "right" for title, _ in columns.values()},
        [
            *([str(row["fold"]), f"{row['images']:,}", str(row["best_epoch"]), *cells(row)] for row in folds),
            *(
                [title, "", "", *cells({name: spread[name][statistic] for name in columns})]
                for title, statistic in (("mean", "mean"), ("standard deviation", "std"))
            ),
        ],
    )
