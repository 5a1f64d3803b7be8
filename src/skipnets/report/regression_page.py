"""The sections of a report that are about numbers, for a run that predicts them.

Shapes: N images, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from skipnets.axes import worded
from skipnets.data.splits import SPLITS
from skipnets.data.targets import targets_from_texts
from skipnets.evaluation.regression import RegressionMetrics, measure_numbers
from skipnets.evaluation.regression_evaluation import TITLES, metric_text
from skipnets.evaluation.saving import inputs_noun
from skipnets.evaluation.scatter import plot_residuals, plot_scatter
from skipnets.report import charts
from skipnets.report.gallery import Thumbnails
from skipnets.report.regression_results import RegressionResults
from skipnets.tables import number_text

__all__ = ["regression_sections"]

_GALLERY = 12  # images in the gallery with Grad-CAM
_TILES = 6
_CHARTS = 24  # targets with charts
_MEANINGS = {
    "mae": "mean distance between prediction and true value",
    "rmse": "root of the mean squared error: large errors count more",
    "r2": "share of the values’ variance that is explained",
    "bias": "mean of prediction minus true value",
    "exact": "share of the images with exactly their grade",
    "within_one": "share of the images with a grade at most one off",
}


def regression_sections(
    results: RegressionResults,
    thumbnails: Thumbnails,
    splits: Mapping[str, tuple[str, str]],
    progress: Callable[[str, int, int], object],
) -> dict[str, Any]:
    """What the template "regression.html.jinja" shows, beside training and unreadable files.

    Args:
        results: The predictions.
        thumbnails: Of the images.
        splits: Name of each image → its numbers as a text, and its split.
        progress: Called with the name of the current step, the number of items done and their total.
    """
    metrics = measure_numbers(
        results.predicted, results.numbers, ordinal=results.ordinal, groups=results.groups
    )
    kind = inputs_noun(results.evaluation)
    return {
        "tiles": _tiles(results, metrics),
        "unit": kind if metrics.groups is None else f"{metrics.groups:,} groups of {kind}",
        "titles": [_title(name) for name in metrics.targets],
        "some_unknown": not np.isfinite(results.numbers).all(),
        "targets": _targets(results, metrics),
        "plots": _plots(results),
        "errors": _largest_errors(results, thumbnails, progress),
        "ranges": _ranges(results, splits),
    }


def _tiles(results: RegressionResults, metrics: RegressionMetrics) -> list[dict[str, Any]]:
    """The metrics of the only target, or R² of each of the first targets."""
    dims = results.evaluation.get("dims", 2)
    if len(results.classes) == 1:
        wanted = [(name, 0, _title(name), _MEANINGS[name]) for name in metrics.targets]
    else:
        wanted = [
            ("r2", index, f"R² of {name}", _MEANINGS["r2"]) for index, name in enumerate(results.classes)
        ]
    return [
        {"title": title, "meaning": worded(meaning, dims), **_value(metrics, name, index)}
        for name, index, title, meaning in wanted[:_TILES]
    ]


def _title(name: str) -> str:
    return TITLES[name][0].upper() + TITLES[name][1:]


def _value(metrics: RegressionMetrics, name: str, index: int) -> dict[str, Any]:
    """A metric of a target as text, and its interval."""
    low, high = metrics.intervals[name][index].tolist()
    return {
        "value": metric_text(name, float(metrics.targets[name][index])),
        "interval": f"{metric_text(name, low)} to {metric_text(name, high)}" if low == low else None,
    }


def _targets(results: RegressionResults, metrics: RegressionMetrics) -> list[dict[str, Any]]:
    return [
        {
            "name": target,
            "cells": [_value(metrics, name, index) for name in metrics.targets],
            **_range(results.numbers[:, index]),
        }
        for index, target in enumerate(results.classes)
    ]


def _range(numbers: NDArray[np.float64]) -> dict[str, Any]:
    """How many of the numbers are known, and which is the lowest and the highest, as text."""
    known = numbers[np.isfinite(numbers)]
    ends = [number_text(float(each)) for each in (known.min(), known.max())] if len(known) else ["–", "–"]
    return {"images": f"{len(known):,}", "lowest": ends[0], "highest": ends[1]}


def _plots(results: RegressionResults) -> list[dict[str, Any]]:
    """Predictions over true values, and residuals, of each of the first targets."""
    plots = []
    for index, name in enumerate(results.classes[:_CHARTS]):
        known = np.isfinite(results.numbers[:, index])
        pair = results.numbers[known, index], results.predicted[known, index]
        scatter, residuals = (
            charts.chart(
                f"{key}-{index}",
                lambda axes, plot=plot, pair=pair: plot(axes, *pair, color=charts.C1, line=charts.SOFT),
                (5.2, 4.4),
            )
            for key, plot in (("scatter", plot_scatter), ("residuals", plot_residuals))
        )
        plots.append(
            {
                "name": name,
                "scatter": Markup(scatter),  # noqa: S704 - drawn here, from numbers alone
                "residuals": Markup(residuals),  # noqa: S704
            }
        )
    return plots


def _largest_errors(
    results: RegressionResults, thumbnails: Thumbnails, progress: Callable[[str, int, int], object]
) -> list[dict[str, Any]]:
    """The images furthest from what is right, in units of each target's spread; each image once."""
    errors = results.predicted - results.numbers
    known = np.isfinite(results.numbers)
    spread = np.array(
        [column[of].std() if of.any() else 0 for column, of in zip(results.numbers.T, known.T, strict=True)]
    )
    relative = np.where(known, np.abs(errors), 0) / np.where(spread > 0, spread, 1)
    worst = relative.argmax(1)
    chosen = [
        int(image)
        for image in np.argsort(-relative.max(1), kind="stable")[:_GALLERY]
        if relative[image].max() > 0
    ]
    shown = []
    for done, image in enumerate(chosen):
        progress("Grad-CAM", done, len(chosen))
        index = int(worst[image])
        thumbnail, overlays = thumbnails.explained(image, [results.classes[index]])
        error = float(errors[image, index])
        shown.append(
            {
                "name": results.names[image],
                "image": thumbnail,
                "overlay": overlays[0] if overlays else None,
                "target": results.classes[index],
                "predicted": number_text(results.predicted[image, index]),
                "true": number_text(results.numbers[image, index]),
                "error": f"{'+' if error > 0 else ''}{number_text(error)}",
            }
        )
    return shown


def _ranges(results: RegressionResults, splits: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """For each target and split, how many images there are and what their numbers are."""
    rows = []
    for split in SPLITS:
        texts = [text for text, of in splits.values() if of == split]
        if not texts:
            continue
        numbers = targets_from_texts(texts)
        for index, name in enumerate(results.classes):
            column = numbers[np.isfinite(numbers[:, index]), index]
            statistics = (
                (column.min(), column.mean(), column.max(), column.std()) if len(column) else [math.nan] * 4
            )
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "images": len(column),
                    "cells": [number_text(float(value)) if value == value else "–" for value in statistics],
                }
            )
    return sorted(rows, key=lambda row: results.classes.index(row["name"]))
