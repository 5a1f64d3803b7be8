"""Charts as inline SVG: text stays text, and colors follow the page's light or dark mode.

matplotlib draws them. Names of classes never go through it: legends are HTML.

Shapes: N images.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from skipnets.axes import worded
from skipnets.evaluation.reliability import Reliability
from skipnets.training.curves import (
    MEASURES,
    Palette,
    has_measure,
    headline,
    plot_accuracy,
    plot_learning_rate,
    plot_losses,
    plot_measure,
)
from skipnets.training.run import Row

__all__ = [
    "Curves",
    "chart",
    "draw_curves",
    "draw_fold_learning",
    "draw_learning",
    "draw_measures",
    "draw_one_class",
    "draw_reliability",
    "one_class_curves",
]

# Placeholders that the page's CSS variables replace in the SVG. Any colors do, if each occurs once.
_VARIABLES = {
    "ink": "#010203",
    "soft": "#040506",
    "line": "#070809",
    "surface": "#0a0b0c",
    "c1": "#0d0e0f",
    "c2": "#101112",
    "c3": "#131415",
    "c4": "#161718",
    "c5": "#191a1b",
}
INK, SOFT, SURFACE, C1, C2 = (_VARIABLES[name] for name in ("ink", "soft", "surface", "c1", "c2"))
SERIES = tuple(_VARIABLES[f"c{number}"] for number in range(1, 6))
_PALETTE = Palette(ink=INK, soft=SOFT, line=_VARIABLES["line"], surface=SURFACE, train=C2, validation=C1)
_STYLE: Any = {**_PALETTE.style(), "svg.fonttype": "none", "path.simplify_threshold": 0.4}
_POINTS = 400
_SMALL = (3.4, 2.4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """One class's precision-recall and ROC curves.

    Attributes:
        precision: Precision at each recall.
        recall: Recall, falling.
        average_precision: The area under precision over recall, as scikit-learn sums it.
        false_positives: False positive rate at each threshold.
        true_positives: True positive rate at each threshold.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    average_precision: float
    false_positives: NDArray[np.float64]
    true_positives: NDArray[np.float64]


def one_class_curves(probability: NDArray[np.float64], is_class: NDArray[np.bool_]) -> Curves | None:
    """One class's curves from its probability on each image; None if no image or every image is of it."""
    if is_class.all() or not is_class.any():
        return None
    precision, recall, _ = precision_recall_curve(is_class, probability)
    false_positives, true_positives, _ = roc_curve(is_class, probability)
    return Curves(
        precision=_thinned(precision),
        recall=_thinned(recall),
        average_precision=float(average_precision_score(is_class, probability)),
        false_positives=_thinned(false_positives),
        true_positives=_thinned(true_positives),
    )


def draw_learning(rows: Sequence[Row], best_epoch: int) -> tuple[str, str, str]:
    """Losses, accuracies and learning rate over the epochs."""
    return (
        chart("learning-loss", lambda axes: plot_losses(axes, rows, _PALETTE)),
        chart("learning-accuracy", lambda axes: plot_accuracy(axes, rows, best_epoch, _PALETTE)),
        chart("learning-rate", lambda axes: plot_learning_rate(axes, rows, _PALETTE)),
    )


def draw_measures(rows: Sequence[Row], dims: int = 2) -> dict[str, str]:
    """What else was measured in each epoch (gradient norm, speed, cost): title → small chart."""
    return {
        worded(title, dims): chart(
            f"learning-{name}", lambda axes, name=name: plot_measure(axes, rows, name, _PALETTE), _SMALL
        )
        for name, title in MEASURES.items()
        if has_measure(rows, name)
    }


def draw_fold_learning(folds: Sequence[Sequence[Row]]) -> str:
    """The headline of validation images over the epochs, such as accuracy; one line for each fold."""

    def draw(axes: Axes) -> None:
        for rows in folds:
            epochs, values = [row.epoch for row in rows], [headline(row) for row in rows]
            marker = "o" if len(rows) == 1 else ""
            axes.plot(epochs, values, color=C1, alpha=0.6, linewidth=1.4, marker=marker)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        if all(row.val_mae is None for rows in folds for row in rows):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.margins(y=0.08)

    return chart("fold-learning", draw)


def draw_reliability(
    bins: Reliability, key: str, *, names: tuple[str, str, str] = ("confidence", "accuracy", "images")
) -> str:
    """A reliability diagram: accuracy over confidence, with a histogram of the images in each bin below.

    Args:
        bins: From `skipnets.evaluation.reliability`.
        key: Identifier, unique on the page.
        names: Of what lies along, of what lies up, and of what is counted.
    """
    full = bins.counts > 0
    confidence, accuracy = bins.confidence[full], bins.accuracy[full]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2, dashes=(4, 3))
        upper.vlines(confidence, *bins.intervals[full].T, color=C1, linewidth=7, alpha=0.28)
        # A bin's dot grows with its images, so that a lone outlier does not look like a trend.
        sizes = 16 + 90 * np.sqrt(bins.counts[full] / bins.counts.max())
        upper.scatter(confidence, accuracy, s=sizes, color=C1, edgecolor=SURFACE, zorder=3, clip_on=False)
        upper.set(ylim=(-0.02, 1.02), ylabel=names[1])
        width = bins.edges[1] - bins.edges[0]
        shares = bins.counts / max(bins.counts.sum(), 1)  # of no image at all where nothing is known
        lower.bar(bins.edges[:-1] + width / 2, shares, width * 0.86, color=C1, alpha=0.6)
        lower.set(xlim=(0, 1), xlabel=names[0], ylabel=names[2])
        lower.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
        for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _svg(figure, key)


def draw_curves(curves: Sequence[tuple[Curves, str | None]], key: str) -> tuple[str, str]:
    """Precision-recall and ROC curves of several classes.

    Args:
        curves: Curves, each with its color (one of `SERIES`) or None to stay in the background.
        key: Identifier, unique on the page.
    """
    # Those in the background first.
    ordered = sorted(curves, key=lambda pair: pair[1] is not None)

    size = (5.2, 4.4)
    return (
        chart(f"{key}-pr", lambda axes: _precision_recall(axes, ordered), size),
        chart(f"{key}-roc", lambda axes: _roc(axes, ordered), size),
    )


def draw_one_class(curves: Curves, key: str) -> str:
    """Both curves of one class side by side, small.

    Args:
        curves: From `one_class_curves`.
        key: Identifier, unique on the page.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 2.1))
        figure.subplots_adjust(left=0.13, right=0.985, bottom=0.22, top=0.97, wspace=0.42)
        left, right = figure.subplots(1, 2)
        _precision_recall(left, [(curves, C1)], small=True)
        _roc(right, [(curves, C1)], small=True)
        return _svg(figure, key)


def chart(key: str, draw: Any, size: tuple[float, float] = (4.3, 3.0)) -> str:
    """An SVG of one pair of axes.

    Args:
        key: Identifier, unique on the page.
        draw: Draws on the axes, in the colors of this module.
        size: In inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return _svg(figure, key)


def _svg(figure: Figure, key: str) -> str:
    """The figure as an SVG element that fills its box, without ids or styles that would clash on the page."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"/>', "", re.sub(r'<g id="[^"]*">', "<g>", text))
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1
    )
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    for name, color in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r">\s+<", "><", text).strip()


def _precision_recall(
    axes: Axes, curves: Sequence[tuple[Curves, str | None]], *, small: bool = False
) -> None:
    for each, color in curves:
        axes.plot(each.recall, each.precision, drawstyle="steps-post", **_line(color))
    _unit_square(axes, "recall", "precision", small=small)


def _roc(axes: Axes, curves: Sequence[tuple[Curves, str | None]], *, small: bool = False) -> None:
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, dashes=(4, 3))
    for each, color in curves:
        axes.plot(each.false_positives, each.true_positives, **_line(color))
    _unit_square(axes, "false positive rate", "true positive rate", small=small)


def _line(color: str | None) -> dict[str, Any]:
    if color is None:
        return {"color": SOFT, "linewidth": 1, "alpha": 0.4}
    return {"color": color, "linewidth": 1.8}


def _unit_square(axes: Axes, x: str, y: str, *, small: bool) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ticks = [0, 0.5, 1] if small else [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `_POINTS` of a curve's points, evenly spaced, including both ends."""
    if len(values) <= _POINTS:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))]
