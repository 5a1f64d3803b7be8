"""What comparisons of runs on the same images share: matching them, adjusting p-values, caveats.

Shapes: N images, K classes or labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from skipnets.axes import INPUTS
from skipnets.errors import UserError, listed
from skipnets.evaluation.intervals import Interval
from skipnets.evaluation.saving import inputs_noun
from skipnets.tables import Display, make_table, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SIGNIFICANT", "PairedComparison", "caveats", "difference_table", "holm", "matched", "verdict"]

SIGNIFICANT = 0.05
_NOUNS = {"multi-label": "labels", "regression": "targets"}


class Evaluated(Protocol):
    """Predictions of a run: `Results`, `LabelResults` or `RegressionResults`."""

    @property
    def folder(self) -> Path:
        """The folder that they were read from."""

    @property
    def evaluation(self) -> dict[str, Any]:
        """Contents of evaluation.json."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""

    @property
    def names(self) -> list[str]:
        """Names of the N images."""


@dataclass(frozen=True, kw_only=True)
class PairedComparison(Display):
    """Several runs on the same images, and their differences from the first.

    Attributes:
        runs: Their names; the first is the one that the others are compared with.
        data: The data that they were evaluated on.
        split: The split of these data.
        images: N.
        notes: Caveats, one sentence each.
        dims: Spatial axes of what was evaluated: 3 of volumes, 1 of signals.
    """

    runs: tuple[str, ...]
    data: str
    split: str
    images: int
    notes: tuple[str, ...]
    dims: int = 2

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; `dims` where it is not 2."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name != "dims" or value != 2}

    def difference_table(self, run: str) -> Table:
        """The table of a run's differences from the first."""
        raise NotImplementedError

    def metric_tables(self) -> list[Table]:
        """Tables of the runs' metrics, before those of their differences."""
        return []

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        return [
            properties_table(
                {INPUTS[self.dims]: f"{self.images:,} ({self.data}, {self.split}), the same for all"}
            ),
            *self.metric_tables(),
            *(self.difference_table(run) for run in self.runs[1:]),
            *(properties_table({"note": note}) for note in self.notes),
        ]


def matched(first: Evaluated, other: Evaluated) -> tuple[list[int], list[int]]:
    """Where the other run has each image, (N,), and each class, (K,), of the first.

    Raises:
        UserError: If classes, splits or images are not the same.
    """
    pair = f"{first.folder} and {other.folder} cannot be compared"
    if strange := sorted(set(first.classes) ^ set(other.classes)):
        what = _NOUNS.get(str(first.evaluation.get("task")), "classes")
        raise UserError(f"{pair}: their {what} differ ({listed(strange, 3)})")
    if first.evaluation["split"] != other.evaluation["split"]:
        raise UserError(
            f"{pair}: they were evaluated on different splits "
            f'("{first.evaluation["split"]}" and "{other.evaluation["split"]}")'
        )
    place = {name: index for index, name in enumerate(other.names)}
    if strange := sorted(set(first.names) ^ set(place)):
        kind = inputs_noun(first.evaluation)
        raise UserError(
            f"{pair}: their test {kind} differ ({len(strange):,} are in one only: {listed(strange, 3)}); "
            "train on the same splits, or evaluate both on the same data: "
            "skipnets evaluate RUN DATA --output FOLDER"
        )
    return [place[name] for name in first.names], [other.classes.index(name) for name in first.classes]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted for multiple comparisons (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(p: float, *, better: bool) -> str:
    """What a difference is: "better", "worse", or "within noise"."""
    if p >= SIGNIFICANT or not math.isfinite(p):
        return "within noise"
    return "better" if better else "worse"


def difference_table(
    noun: str,
    metric: str,
    first: str,
    run: str,
    rows: Sequence[tuple[str, float, float, Interval, float, str]],
    as_text: Callable[[float], str],
) -> Table:
    """A table of a run's differences from the first run.

    Args:
        noun: What has a row: "label" or "target".
        metric: What is compared.
        first: Name of the first run.
        run: Name of the run.
        rows: For each label or target its name, the metric of the first run and of the run, the interval of
            the difference, its p-value, and the verdict.
        as_text: How a metric becomes text.
    """

    def signed(value: float) -> str:
        return f"{'-' if value < 0 else '+'}{as_text(abs(value))}"

    return make_table(
        {
            noun: "left",
            "first": "right",
            "run": "right",
            "change": "right",
            "95% interval": "right",
            "p": "right",
            "": "left",
        },
        (
            [
                name,
                as_text(before),
                as_text(after),
                signed(after - before),
                f"{signed(low)} to {signed(high)}",
                f"{p:.3g}",
                judged,
            ]
            for name, before, after, (low, high), p, judged in rows
        ),
        title=f"{metric} of {run} against {first}, the first run",
    )


def caveats(every: Sequence[Evaluated], names: Sequence[str]) -> list[str]:
    """Where the runs' data differ, and the warnings of their evaluations, one sentence each."""
    found = []
    first = every[0].evaluation
    for results, name in zip(every, names, strict=True):
        evaluation = results.evaluation
        if evaluation["data"] != first["data"]:
            found.append(
                f"{name} was evaluated on {evaluation['data']}, {names[0]} on {first['data']}; "
                f"names and labels of the {inputs_noun(first)} are the same"
            )
        found += [f"{name}: {warning}" for warning in evaluation.get("warnings", ())]
    return found
