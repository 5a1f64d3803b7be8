"""`skipnets compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from skipnets.cli.output import print_json, print_table, properties_table

if TYPE_CHECKING:
    from skipnets.report import Comparison

_TITLES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "mean F1",
    "macro_auroc": "mean AUROC",
    "nll": "negative log-likelihood",
    "ece": "calibration error (ECE)",
}
_AS_PER_CENT = ("accuracy", "top5", "balanced_accuracy", "ece")


def compare(runs: list[Path], /, *, json: bool = False, resamples: int = 2000, seed: int = 0) -> None:
    """Tell whether runs differ by more than noise, on the test images that they share.

    Every run is held against the first: accuracy by McNemar's exact test, the rest by a paired bootstrap.
    Probabilities are at the temperature of each model file.

    For example:

        skipnets compare runs/resnet runs/densenet
        skipnets compare runs/baseline runs/larger runs/longer --json

    Args:
        runs: Run folders, or folders that `skipnets evaluate --output` wrote; the same test images in all.
        json: Print figures and tests as JSON.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    from skipnets.report import compare as compare_runs

    comparison = compare_runs(runs, resamples=resamples, seed=seed)
    if json:
        print_json(comparison.to_dict())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    print_table(
        properties_table(
            {"images": f"{comparison.images:,} ({comparison.data}, {comparison.split}), the same for all"}
        )
    )
    table = _table("figure", *comparison.runs)
    for figure in comparison.figures:
        cells = [
            _written(figure.name, value)
            + (
                f"  ({_written(figure.name, between[0])} to {_written(figure.name, between[1])})"
                if between
                else ""
            )
            for value, between in zip(figure.values, figure.intervals, strict=True)
        ]
        table.add_row(_TITLES[figure.name], *cells)
    print_table(table)
    for run in comparison.runs[1:]:
        table = _table(f"{run} against {comparison.runs[0]}", "difference", "95 % interval", "p", "")
        for each in comparison.differences:
            if each.run == run:
                low, high = (_written(each.figure, end, sign=True) for end in each.interval)
                difference = _written(each.figure, each.difference, sign=True)
                verdict = each.verdict
                if each.only_run_right is not None:
                    verdict += (
                        f"  (right alone on {each.only_run_right:,} and {each.only_first_right:,} images)"
                    )
                table.add_row(_TITLES[each.figure], difference, f"{low} to {high}", f"{each.p:.3g}", verdict)
        print_table(table)
    for note in comparison.notes:
        print_table(properties_table({"note": note}))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    return table


def _written(figure: str, value: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value:{plus}.2%}" if figure in _AS_PER_CENT else f"{value:{plus}.4f}"
