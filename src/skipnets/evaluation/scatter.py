"""Draw predicted numbers over the right ones, and their residuals.

Shapes: N images, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_scatter", "plot_residuals", "plot_scatter"]

MOST_POINTS = 4000
_INK, _MUTED, _LINES, _BLUE = "#1a222c", "#5a6675", "#dfe3e8", "#1d62b8"

Floats = NDArray[np.float64]


def draw_scatter(numbers: Floats, predicted: Floats, targets: Sequence[str], *, title: str) -> Figure:
    """A row for each target: predictions over the right numbers, and residuals over predictions.

    Args:
        numbers: (N, T) what is right; images where it is NaN are not drawn.
        predicted: (N, T).
        targets: T names.
        title: Above the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _LINES,
        "axes.labelcolor": _MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "xtick.color": _LINES,
        "ytick.color": _LINES,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.6, 4.5 * len(targets) + 0.5), dpi=150, layout="constrained")
        figure.suptitle(title, fontsize=13, weight="bold", x=0.012, ha="left", parse_math=False)
        rows = figure.subplots(len(targets), 2, squeeze=False)
        for index, (name, (left, right)) in enumerate(zip(targets, rows, strict=True)):
            known = np.isfinite(numbers[:, index])
            pair = numbers[known, index], predicted[known, index]
            plot_scatter(left, *pair, color=_BLUE, line=_MUTED)
            plot_residuals(right, *pair, color=_BLUE, line=_MUTED)
            left.set_title(name, parse_math=False)
    return figure


def plot_scatter(axes: Axes, numbers: Floats, predicted: Floats, *, color: str, line: str) -> None:
    """Plot (N,) predictions over (N,) right numbers; on the dashed line the two are equal."""
    if not len(numbers):
        return
    low, high = _limits(np.concatenate([numbers, predicted]))
    axes.plot([low, high], [low, high], color=line, linewidth=1.2, dashes=(4, 3), zorder=1)
    _dots(axes, numbers, predicted, color)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true value", ylabel="prediction", aspect="equal")
    _place_ticks(axes, numbers, predicted)


def plot_residuals(axes: Axes, numbers: Floats, predicted: Floats, *, color: str, line: str) -> None:
    """Plot (N,) prediction minus right number over the prediction: around 0 everywhere, if all is well."""
    if not len(numbers):
        return
    residuals = predicted - numbers
    axes.axhline(0, color=line, linewidth=1.2, dashes=(4, 3), zorder=1)
    _dots(axes, predicted, residuals, color)
    bound = 1.08 * (float(np.abs(residuals).max()) or 1.0)
    axes.set(ylim=(-bound, bound), xlabel="prediction", ylabel="prediction minus true value")
    _place_ticks(axes, numbers, predicted)


def _dots(axes: Axes, x: Floats, y: Floats, color: str) -> None:
    """Dots that become smaller and fainter the more there are; of equal ones, as of grades, a larger one.

    Of more than `MOST_POINTS`, that many are drawn at random, as the images may be sorted.
    """
    if len(x) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(x), MOST_POINTS, replace=False)
        x, y = x[chosen], y[chosen]
    # Equal but for rounding, whatever the unit of the numbers is.
    unit = 1e-9 * (float(max(np.abs(x).max(), np.abs(y).max())) or 1.0)
    points, counts = np.unique(np.rint(np.stack([x, y], axis=1) / unit), axis=0, return_counts=True)
    points = points * unit
    size = np.clip(6000 / len(points), 6, 28)
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=size * np.minimum(counts, 40),
        color=color,
        alpha=float(np.clip(60 / len(points) ** 0.7, 0.15, 0.7)),
        linewidth=0,
        zorder=2,
    )


def _place_ticks(axes: Axes, numbers: Floats, predicted: Floats) -> None:
    """Few enough to be told apart, at whole numbers alone where all are whole."""
    from matplotlib.ticker import MaxNLocator

    whole = bool((numbers == np.rint(numbers)).all() and (predicted == np.rint(predicted)).all())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=whole))


def _limits(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
