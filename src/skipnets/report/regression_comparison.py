"""Compare regressions: the mean absolute error of each target by the paired bootstrap.

All runs are measured on the same draws of images, or of whole groups of them.

Shapes: N images, T targets, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.listing import counted
from skipnets.errors import UserError, listed
from skipnets.evaluation.intervals import Interval
from skipnets.evaluation.multi_label import draws, group_numbers
from skipnets.evaluation.ratios import ratio
from skipnets.evaluation.regression_evaluation import metric_text
from skipnets.report.bootstrap import bootstrap_p, spread_interval
from skipnets.report.pairing import PairedComparison, caveats, difference_table, holm, matched, verdict
from skipnets.report.regression_results import RegressionResults, read_regression_results

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["NumberComparison", "NumberDifference", "compare_numbers"]

_FEWEST = 2  # images or groups with a number, for errors to vary


@dataclass(frozen=True, kw_only=True)
class NumberDifference:
    """Difference between a run and the first run in the mean absolute error of one target.

    Attributes:
        run: Name of the run.
        target: The target.
        first: Mean absolute error of the first run, in the target's units.
        mae: Mean absolute error of the run.
        interval: 95% interval of the run minus the first run (percentiles of the paired bootstrap).
        p: The p-value of the paired bootstrap, adjusted for all targets and runs (Holm).
        verdict: "better", "worse", or "within noise" (p is at least 0.05).
    """

    run: str
    target: str
    first: float
    mae: float
    interval: Interval
    p: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class NumberComparison(PairedComparison):
    """Mean absolute errors of the targets in several runs, and their differences from the first.

    Attributes:
        differences: One for each target of each run after the first.
    """

    differences: tuple[NumberDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"task": "regression", **asdict(self)}

    def difference_table(self, run: str) -> Table:
        """The table of a run's differences from the first."""
        return difference_table(
            "target",
            "MAE",
            self.runs[0],
            run,
            [
                (each.target, each.first, each.mae, each.interval, each.p, each.verdict)
                for each in self.differences
                if each.run == run
            ],
            partial(metric_text, "mae"),
        )


def compare_numbers(
    folders: Sequence[Path], names: Sequence[str], *, resamples: int, seed: int
) -> NumberComparison:
    """Compare regressions with the first of them.

    Args:
        folders: Two or more folders with evaluations of regressions.
        names: What they are called.
        resamples: B; a p-value is at least 2 / (B + 1).
        seed: Seed of the draws.

    Raises:
        UserError: If their images, targets or true numbers differ.
    """
    every = [read_regression_results(folder) for folder in folders]
    first, *others = every
    aligned = [first, *(_aligned(first, other) for other in others)]
    known = np.isfinite(first.numbers)
    errors = [np.where(known, np.abs(each.predicted - first.numbers), 0) for each in aligned]
    units, _ = group_numbers(first.groups, len(first.names))
    samples = _resampled(errors, known, units, resamples=resamples, seed=seed)
    few = [len(np.unique(units[of])) < _FEWEST for of in known.T]
    differences = []
    for run, name in enumerate(names[1:], start=1):
        for index, target in enumerate(first.classes):
            if few[index]:
                continue
            before, after = (float(each[known[:, index], index].mean()) for each in (errors[0], errors[run]))
            spread = samples[run][:, index] - samples[0][:, index]
            differences.append(
                NumberDifference(
                    run=name,
                    target=target,
                    first=before,
                    mae=after,
                    interval=spread_interval(spread),
                    p=bootstrap_p(spread),
                    verdict="",
                )
            )
    adjusted = holm([each.p for each in differences])
    notes = caveats(every, names)
    notes.append(
        f"p-values are the paired bootstrap's, adjusted (Holm) for "
        f"{counted(len(differences), 'comparison')}; intervals are not"
    )
    if first.groups is not None:
        notes.append("images of one group are drawn together")
    if left_out := [target for target, is_few in zip(first.classes, few, strict=True) if is_few]:
        notes.append(f"too few images with a number to compare {listed(left_out)}")
    return NumberComparison(
        runs=tuple(names),
        data=str(first.evaluation["data"]),
        split=str(first.evaluation["split"]),
        images=len(first.names),
        differences=tuple(
            replace(each, p=p, verdict=verdict(p, better=each.mae < each.first))
            for each, p in zip(differences, adjusted, strict=True)
        ),
        notes=tuple(notes),
    )


def _resampled(
    errors: Sequence[NDArray[np.float64]],
    known: NDArray[np.bool_],
    units: NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
) -> list[NDArray[np.float64]]:
    """For each run, (B, T) mean absolute errors on the same draws; NaN where no image with a number is drawn.

    Args:
        errors: (N, T) of each run, 0 where unknown.
        known: (N, T) whether the number is known.
        units: (N,) what is drawn as a whole.
        resamples: B.
        seed: Seed of the draws.
    """
    samples: list[list[NDArray[np.float64]]] = [[] for _ in errors]
    for weights in draws(units, resamples, seed, width=known.size):
        count = weights @ known
        for parts, of_run in zip(samples, errors, strict=True):
            parts.append(ratio(weights @ of_run, count))
    return [np.concatenate(parts) for parts in samples]


def _aligned(first: RegressionResults, other: RegressionResults) -> RegressionResults:
    """The other run's predictions in the first run's order of images and targets.

    Raises:
        UserError: If these, or the true numbers, are not the same.
    """
    order, columns = matched(first, other)
    aligned = replace(
        other,
        classes=first.classes,
        names=first.names,
        numbers=other.numbers[order][:, columns],
        predicted=other.predicted[order][:, columns],
    )
    differing = ~np.isclose(aligned.numbers, first.numbers, rtol=1e-6, atol=0, equal_nan=True)
    if differing.any():
        image, target = (int(place[0]) for place in np.nonzero(differing))
        raise UserError(
            f"{first.folder} and {other.folder} cannot be compared: "
            f"{first.classes[target]} of {first.names[image]} is not the same in both"
        )
    return aligned
