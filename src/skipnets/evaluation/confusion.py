"""Draw confusion matrices.

Shapes: K classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import needs_extra
from skipnets.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_confusion", "save_figure", "tints"]

_RIGHT = np.array([0.114, 0.384, 0.722])
_WRONG = np.array([0.710, 0.306, 0.035])  # orange and blue differ in every kind of color vision
_NO_IMAGES = np.array([0.93, 0.94, 0.95])
_PALEST = 0.07  # one image among thousands still differs from none
_DEEPEST_AT_LEAST = 0.1  # of a row: a single rare mistake is not drawn as strongly as a common one
_INK, _MUTED, _LINES = "#1f2933", "#6b7280", "#d8dce1"
_COUNTS_UP_TO = 30  # classes; beyond, counts would be too small to read
_NAMES_UP_TO = 150


def draw_confusion(
    confusion: NDArray[np.int64], classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Draw a confusion matrix: correct predictions in blue, mistakes in orange, colored in proportion.

    With up to 30 classes, cells show their counts, and recall and precision stand at the edges.

    Args:
        confusion: (K, K) counts; rows are the true classes, columns the predicted ones.
        classes: K names.
        title: Heading.
        note: Smaller text below the heading.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        UserError: If matplotlib is not installed.
    """
    with needs_extra("train"):
        from matplotlib.figure import Figure
    count = len(classes)
    cell = 0.62 if count <= 12 else 0.4 if count <= _COUNTS_UP_TO else 0.16 if count <= _NAMES_UP_TO else 0
    side = max(count * cell, 3.2) if cell else 16.0
    cell = side / count * 72  # from here on in points, as fonts are
    font = min(max(cell * 0.5, 4.5), 10.5)
    figure = Figure(figsize=(side, side), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # `save_figure` adds room for the labels outside
    axes.imshow(_colors(confusion), interpolation="nearest", aspect="auto")
    _name_classes(axes, classes, font, cell)
    if count <= _COUNTS_UP_TO:
        _write_counts(axes, confusion, font, cell)
    _write_heading(axes, title, note, room=24 if count <= _COUNTS_UP_TO else 8)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure with the labels around its axes, atomically."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Class names may be in any script; what the font lacks shows as a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        figure.savefig(temporary, bbox_inches="tight", pad_inches=0.2)


def tints(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Color strength of each cell, in proportion to its share of the row.

    Correct predictions and mistakes have scales of their own, as mistakes are rarely more than a few percent
    of a row.

    Args:
        confusion: (K, K) counts; rows are the true classes.

    Returns:
        (K, K) strengths from 0 (no images) to 1, and the share of the row at which mistakes reach 1.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    correct = np.eye(len(confusion), dtype=bool)
    deepest = max(float(np.where(correct, 0, shares).max()), _DEEPEST_AT_LEAST)
    depth = np.where(correct, shares, shares / deepest)
    return np.where(confusion > 0, _PALEST + (1 - _PALEST) * depth, 0), deepest


def _colors(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K) counts → (K, K, 3) colors."""
    depth, _ = tints(confusion)
    correct = np.eye(len(confusion), dtype=bool)[..., None]
    colors = 1 - depth[..., None] * (1 - np.where(correct, _RIGHT, _WRONG))
    return np.where(confusion.sum(1)[:, None, None] > 0, colors, _NO_IMAGES)


def _ink_on(color: NDArray[np.float64]) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) with a color: 4.5 and more."""
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ (0.2126, 0.7152, 0.0722)) < 0.179 else "black"


def _name_classes(axes: Axes, classes: Sequence[str], font: float, cell: float) -> None:
    positions = range(0, len(classes), -(-len(classes) // _NAMES_UP_TO))
    names = [_shortened(classes[position]) for position in positions]
    style: dict[str, Any] = {"fontsize": font, "parse_math": False, "color": _INK}
    axes.set_yticks(positions, names, **style)
    if len(classes) > _COUNTS_UP_TO:
        axes.set_xticks(positions, names, rotation=90, **style)
    elif max(map(len, names)) * font * 0.6 < cell:
        axes.set_xticks(positions, names, **style)
    else:
        axes.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.tick_params(length=0, pad=4)
    if len(classes) <= _NAMES_UP_TO:
        between = np.arange(1, len(classes)) - 0.5
        style = {"color": _LINES, "linewidth": 0.6 if len(classes) <= _COUNTS_UP_TO else 0.3}
        axes.hlines(between, -0.5, len(classes) - 0.5, **style)
        axes.vlines(between, -0.5, len(classes) - 0.5, **style)
    axes.spines[:].set_color(_LINES)
    axes.set_ylabel("true class", fontsize=10.5, color=_MUTED, labelpad=8)
    axes.set_xlabel("predicted class", fontsize=10.5, color=_MUTED, labelpad=8)


def _write_counts(axes: Axes, confusion: NDArray[np.int64], font: float, cell: float) -> None:
    """Counts in the cells, recall to the right of each row, precision above each column."""
    support, predicted, correct = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    digits = len(f"{confusion.max():,}")
    size = min(font, cell * 0.85 / (digits * 0.62))
    colors = _colors(confusion)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        axes.text(
            column,
            row,
            f"{confusion[row, column]:,}",
            ha="center",
            va="center",
            fontsize=size,
            color=_ink_on(colors[row, column]),
        )
    edge: dict[str, Any] = {"textcoords": "offset points", "fontsize": font * 0.85, "color": _MUTED}
    last = len(confusion) - 0.5
    axes.annotate("recall", (last, -0.5), xytext=(5, 5), **edge)
    axes.annotate("precision", (-0.5, -0.5), xytext=(-4, 5), ha="right", **edge)
    for index in range(len(confusion)):
        recall = _percent(correct[index], support[index])
        axes.annotate(recall, (last, index), xytext=(5, 0), va="center", **edge)
        precision = _percent(correct[index], predicted[index])
        axes.annotate(precision, (index, -0.5), xytext=(0, 5), ha="center", **edge)


def _write_heading(axes: Axes, title: str, note: str, *, room: float) -> None:
    at: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "parse_math": False}
    at["textcoords"] = "offset points"
    axes.annotate(note, xytext=(0, room), fontsize=9.5, color=_MUTED, **at)
    axes.annotate(title, xytext=(0, room + 16), fontsize=13, fontweight="bold", color=_INK, **at)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "–"


def _shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
