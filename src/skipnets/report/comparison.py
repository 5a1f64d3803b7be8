"""Compare runs, with tests of whether they differ by more than chance.

Runs are evaluated on the same images, so the tests are paired: the exact test of McNemar (1947) for accuracy,
which uses only the images on which exactly one run is correct; the bootstrap over images for other metrics.

Shapes: N images, K classes, B resamples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from skipnets.axes import INPUTS
from skipnets.errors import UserError, check_path, listed
from skipnets.evaluation.intervals import (
    Interval,
    auroc_interval,
    mean_interval,
    share_interval,
    wilson_interval,
)
from skipnets.report.bootstrap import METRICS, bootstrap_p, resample, spread_interval, weighted_metrics
from skipnets.report.label_comparison import LabelComparison, compare_labels
from skipnets.report.pairing import PairedComparison, caveats, holm, matched, verdict
from skipnets.report.reading import evaluated_task
from skipnets.report.regression_comparison import NumberComparison, compare_numbers
from skipnets.report.results import Results, read_results
from skipnets.tables import make_table, percent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "Difference", "MetricValues", "compare", "mcnemar"]

RESAMPLES = 2000

_TITLES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "nll": "negative log-likelihood",
    "ece": "calibration error (ECE)",
}
_PERCENTAGES = ("accuracy", "top5", "balanced_accuracy", "ece")


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """One metric of every run.

    Attributes:
        name: One of `skipnets.report.bootstrap.METRICS`.
        values: One value for each run.
        intervals: 95% confidence intervals (Wilson for accuracy, else the bootstrap's percentiles); None
            where it was not resampled.
    """

    name: str
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference in one metric between a run and the first run.

    Attributes:
        run: Name of the run.
        metric: One of `skipnets.report.bootstrap.METRICS`.
        difference: Run minus first run.
        interval: Its 95% confidence interval (percentiles of the paired bootstrap).
        p: The p-value: the probability of a difference at least as large if the runs were equally good. With
            several runs it is adjusted for all comparisons of this metric (Holm).
        test: "exact McNemar" (of accuracy, where images stand alone) or "paired bootstrap".
        verdict: "better", "worse", or "within noise" (p is at least 0.05).
        only_run_right: For accuracy, the number of images on which only the run is correct.
        only_first_right: The number on which only the first run is.
    """

    run: str
    metric: str
    difference: float
    interval: tuple[float, float]
    p: float
    test: str
    verdict: str
    only_run_right: int | None = None
    only_first_right: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(PairedComparison):
    """Metrics of several runs, and their differences from the first.

    Attributes:
        metrics: The metrics of all runs.
        differences: One for each metric of each run after the first.
    """

    metrics: tuple[MetricValues, ...]
    differences: tuple[Difference, ...]

    def metric_tables(self) -> list[Table]:
        """The metrics of all runs."""
        return [
            make_table(
                {"metric": "left", "run": "left", "value": "right", "95% interval": "right"},
                (
                    [_TITLES[each.name] if index == 0 else "", run, _format(each.name, value), limits]
                    for each in self.metrics
                    for index, (run, value, limits) in enumerate(
                        zip(
                            self.runs,
                            each.values,
                            map(partial(_limits, each.name), each.intervals),
                            strict=True,
                        )
                    )
                ),
            )
        ]

    def difference_table(self, run: str) -> Table:
        """The table of a run's differences from the first."""
        title, rows = f"{run} against {self.runs[0]}", []
        for each in self.differences:
            if each.run == run:
                if each.only_run_right is not None:
                    only_run, only_first = each.only_run_right, each.only_first_right
                    kind = INPUTS[self.dims]
                    title += f": alone correct on {only_run:,} {kind}, alone wrong on {only_first:,}"
                difference = _format(each.metric, each.difference, sign=True)
                limits = _limits(each.metric, each.interval, sign=True)
                rows.append([_TITLES[each.metric], difference, limits, f"{each.p:.3g}", each.verdict])
        return make_table(
            {"metric": "left", "difference": "right", "95% interval": "right", "p": "right", "": "left"},
            rows,
            title=title,
        )


def compare(
    runs: Sequence[str | os.PathLike[str]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison | LabelComparison | NumberComparison:
    """Compare runs with the first of them.

    Of multi-label runs the AUROC of each label is compared, of regressions the mean absolute error of each
    target.

    Args:
        runs: Two or more run folders, or folders that `skipnets evaluate --output` wrote.
        resamples: B; a p-value of the bootstrap is at least 2 / (B + 1).
        seed: Seed of the bootstrap.

    Raises:
        UserError: If there are fewer than two, one is named twice or has no predictions, or images or
            classes differ.
    """
    runs = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    for run in runs:
        check_path("runs", run)
    if len(runs) < 2:
        raise UserError(f"runs: must name at least two, not {len(runs)}")
    if resamples < 1:
        raise UserError(f"resamples={resamples}: must be at least 1")
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError(f"runs: must be different folders, not {', '.join(map(str, runs))}")
    folders = [Path(run) for run in runs]
    tasks = [evaluated_task(folder) for folder in folders]
    for task, kind in (("multi-label", "a multi-label classifier"), ("regression", "a regression")):
        # What cannot be read is told of where it is read.
        another = [folder for folder, its in zip(folders, tasks, strict=True) if its not in (task, None)]
        if task in tasks and another:
            raise UserError(f"runs: {folders[tasks.index(task)]} is of {kind} and {another[0]} is not")
    if tasks[0] == "multi-label":
        return compare_labels(folders, _names(folders))
    if tasks[0] == "regression":
        return compare_numbers(folders, _names(folders), resamples=resamples, seed=seed)
    first, *others = [read_results(run) for run in runs]
    every = [first, *(_aligned(first, other) for other in others)]
    names = _names([results.folder for results in every])
    labels = first.labels
    probabilities = [results.probabilities for results in every]
    values = [
        {
            name: float(value[0])
            for name, value in weighted_metrics(each, labels, _unit_weights(labels)).items()
        }
        for each in probabilities
    ]
    samples = resample(probabilities, labels, units=first.units, resamples=resamples, seed=seed)
    metrics = [name for name in METRICS if name in values[0] and math.isfinite(values[0][name])]
    differences = [
        difference
        for metric in metrics
        if metric in samples[0]
        for difference in _against_first(metric, names, every, values, samples)
    ]
    return Comparison(
        runs=tuple(names),
        data=str(first.evaluation["data"]),
        split=str(first.evaluation["split"]),
        images=len(labels),
        metrics=tuple(
            MetricValues(
                name=metric,
                values=tuple(each[metric] for each in values),
                intervals=tuple(
                    metric_interval(metric, each, labels, sample, first.units)
                    for each, sample in zip(probabilities, samples, strict=True)
                ),
            )
            for metric in metrics
        ),
        differences=tuple(sorted(differences, key=lambda each: names.index(each.run))),
        notes=tuple(_notes(every, names, samples)),
        dims=first.evaluation.get("dims", 2),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    If both are equally good, each image on which only one is correct is a fair coin toss.

    Args:
        only_first: Number of images on which only the first classifier is correct.
        only_second: Number of images on which only the second one is.
    """
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def metric_interval(
    metric: str,
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    sample: dict[str, Any],
    units: NDArray[np.int64] | None = None,
) -> Interval | None:
    """A metric's 95% interval; None where it was not resampled.

    For a share of the images it is Wilson's; for other metrics, the percentiles of the resamples. Where all
    resamples are equal, because no prediction is wrong, those would have no width: then the intervals of the
    classes (Wilson's for shares, Newcombe's for areas under the ROC curve) are combined. With `units`, (N,),
    these count instead of images.
    """
    if metric == "accuracy":
        return share_interval(probabilities.argmax(1) == labels, units)
    if metric not in sample:
        return None
    if metric == "top5":
        best = np.argsort(-probabilities, axis=1)[:, :5]
        return share_interval((best == labels[:, None]).any(1), units)
    if units is not None and not units.any():  # of one unit there is but one resample
        return None
    if _at_the_edge(metric, sample):
        return _interval_at_the_edge(metric, probabilities, labels, units)
    return spread_interval(sample[metric])


def _at_the_edge(metric: str, sample: dict[str, Any]) -> bool:
    """Whether all resamples of a metric are equal, so that intervals of the classes are needed."""
    return (
        metric in ("balanced_accuracy", "macro_f1", "macro_auroc")
        and metric in sample
        and float(np.nanmax(sample[metric]) - np.nanmin(sample[metric])) < 1e-12
    )


def edge_note(sample: dict[str, Any]) -> str | None:
    """What a reader must know where `metric_interval` has not taken the resamples; None where it has."""
    metrics = [_TITLES[metric] for metric in sample if _at_the_edge(metric, sample)]
    if not metrics:
        return None
    return (
        f"every resample gives the same {listed(metrics)}: the interval shown combines those of the classes "
        "(Wilson, Newcombe), not the bootstrap's"
    )


def _interval_at_the_edge(
    metric: str,
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
) -> Interval:
    occurring = np.unique(labels)
    units = np.arange(len(labels)) if units is None else units
    counts = [len(np.unique(units[labels == label])) for label in occurring]
    others = [len(np.unique(units[labels != label])) for label in occurring]
    if metric != "macro_auroc":
        # Without wrong predictions a class's F1 is its recall, a share of its images.
        shares = [float((probabilities[labels == label].argmax(1) == label).mean()) for label in occurring]
        own = [
            wilson_interval(round(share * count), count) for share, count in zip(shares, counts, strict=True)
        ]
        return mean_interval(shares, own)
    areas = [float(roc_auc_score(labels == label, probabilities[:, label])) for label in occurring]
    own = [
        auroc_interval(area, count, other) for area, count, other in zip(areas, counts, others, strict=True)
    ]
    if probabilities.shape[1] == 2:  # both classes have the same curve, so their areas are one estimate
        return own[0]
    return mean_interval(areas, own)


def _against_first(
    metric: str,
    names: Sequence[str],
    every: Sequence[Results],
    values: Sequence[dict[str, float]],
    samples: Sequence[dict[str, NDArray[np.float64]]],
) -> list[Difference]:
    """The differences of one metric, with Holm's p-values."""
    differences = []
    first_right = every[0].predicted == every[0].labels
    for index in range(1, len(every)):
        spread = samples[index][metric] - samples[0][metric]
        difference = Difference(
            run=names[index],
            metric=metric,
            difference=values[index][metric] - values[0][metric],
            interval=spread_interval(spread),
            p=bootstrap_p(spread),
            test="paired bootstrap",
            verdict="",
        )
        if metric == "accuracy":
            right = every[index].predicted == every[index].labels
            only_run, only_first = int((right & ~first_right).sum()), int((first_right & ~right).sum())
            difference = replace(difference, only_run_right=only_run, only_first_right=only_first)
            if every[0].groups is None:  # otherwise images are no independent trials
                difference = replace(difference, p=mcnemar(only_run, only_first), test="exact McNemar")
        differences.append(difference)
    adjusted = holm([difference.p for difference in differences])
    return [
        replace(each, p=p, verdict=verdict(p, better=(each.difference > 0) == METRICS[metric]))
        for each, p in zip(differences, adjusted, strict=True)
    ]


def _unit_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.ones((1, len(labels)))


def _aligned(first: Results, other: Results) -> Results:
    """The other run's predictions in the first run's order of images and classes.

    Raises:
        UserError: If these are not the same.
    """
    order, columns = matched(first, other)
    for place, name, label in zip(order, first.names, first.labels, strict=True):
        one, two = first.classes[label], other.classes[other.labels[place]]
        if one != two:
            raise UserError(
                f"{first.folder} and {other.folder} cannot be compared: "
                f'{name} is "{one}" in one and "{two}" in the other'
            )
    return replace(
        other,
        classes=first.classes,
        names=first.names,
        labels=first.labels,
        logits=other.logits[order][:, columns],
    )


def _notes(every: Sequence[Results], names: Sequence[str], samples: Sequence[dict[str, Any]]) -> list[str]:
    notes = caveats(every, names)
    notes += [
        f"{name}: {note}" for name, sample in zip(names, samples, strict=True) if (note := edge_note(sample))
    ]
    if (units := every[0].units) is not None:
        kind, count = INPUTS[every[0].evaluation.get("dims", 2)], int(units.max()) + 1
        notes.append(f"{kind} of one group are drawn together: intervals and tests are of {count:,} groups")
    if len(every) > 2:
        notes.append(
            f"p-values are adjusted (Holm) for {len(every) - 1} comparisons with {names[0]} in each metric"
        )
    return notes


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of the folders; their paths where these are not all different."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _limits(name: str, interval: tuple[float, float] | None, *, sign: bool = False) -> str:
    """An interval; a dash where there is none."""
    return "–" if interval is None else " to ".join(_format(name, end, sign=sign) for end in interval)


def _format(name: str, value: float, *, sign: bool = False) -> str:
    if name in _PERCENTAGES:
        return percent(value, sign=sign)
    return f"{value:{'+' if sign else ''}.4f}"
