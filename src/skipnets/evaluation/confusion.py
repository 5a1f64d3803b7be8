"""The confusion matrix as an image. K classes."""

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

__all__ = ["draw_confusion", "save_figure"]

_RIGHT = np.array([0.04, 0.38, 0.66])
_WRONG = np.array([0.80, 0.30, 0.02])  # orange: told from blue with every kind of color vision
_NO_IMAGES = np.array([0.93, 0.94, 0.95])
_INK, _MUTED, _LINES = "#1f2933", "#6b7280", "#d8dce1"
_COUNTED_UP_TO = 30  # classes; beyond, counts would be too small to read
_NAMED_UP_TO = 150


def draw_confusion(
    confusion: NDArray[np.int64], classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Draw a confusion matrix: right answers blue, wrong ones orange, the deeper the larger their share.

    The share is of the row (of the images that are this class); for wrong answers its square root is shown,
    so that a few per cent can be seen. Up to 30 classes, cells hold their counts, and recall and precision
    stand at the edges.

    Args:
        confusion: (K, K) counts; rows are the true classes, columns the predicted ones.
        classes: K names.
        title: Stands above, large.
        note: Stands below the title, small.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        UserError: If matplotlib is not installed.
    """
    with needs_extra("train"):
        from matplotlib.figure import Figure
    count = len(classes)
    cell = 0.62 if count <= 12 else 0.4 if count <= _COUNTED_UP_TO else 0.16 if count <= _NAMED_UP_TO else 0
    side = max(count * cell, 3.2) if cell else 16.0
    cell = side / count * 72  # from here on in points, as fonts are
    font = min(max(cell * 0.5, 4.5), 10.5)
    figure = Figure(figsize=(side, side), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # labels lie outside: `save_figure` makes room for them
    axes.imshow(_colors(confusion), interpolation="nearest", aspect="auto")
    _name_classes(axes, classes, font, cell)
    if count <= _COUNTED_UP_TO:
        _write_counts(axes, confusion, font, cell)
    _write_heading(axes, title, note, room=24 if count <= _COUNTED_UP_TO else 8)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure with everything that lies around its axes, whole or not at all."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Class names may be in any script; what the font lacks shows as a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        figure.savefig(temporary, bbox_inches="tight", pad_inches=0.2)


def _colors(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K) counts → (K, K, 3) colors."""
    support = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(support, 1)
    right = np.eye(len(confusion), dtype=bool)
    strength = np.where(right, shares, np.sqrt(shares))
    # One image among thousands must still differ from none.
    strength = np.where(confusion > 0, 0.1 + 0.9 * strength, 0)[..., None]
    colors = 1 - strength * (1 - np.where(right[..., None], _RIGHT, _WRONG))
    return np.where(support[..., None] > 0, colors, _NO_IMAGES)


def _name_classes(axes: Axes, classes: Sequence[str], font: float, cell: float) -> None:
    positions = range(0, len(classes), -(-len(classes) // _NAMED_UP_TO))
    names = [_shortened(classes[position]) for position in positions]
    style: dict[str, Any] = {"fontsize": font, "parse_math": False, "color": _INK}
    axes.set_yticks(positions, names, **style)
    if len(classes) > _COUNTED_UP_TO:
        axes.set_xticks(positions, names, rotation=90, **style)
    elif max(map(len, names)) * font * 0.6 < cell:
        axes.set_xticks(positions, names, **style)
    else:
        axes.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.tick_params(length=0, pad=4)
    if len(classes) <= _NAMED_UP_TO:
        between = np.arange(1, len(classes)) - 0.5
        style = {"color": _LINES, "linewidth": 0.6 if len(classes) <= _COUNTED_UP_TO else 0.3}
        axes.hlines(between, -0.5, len(classes) - 0.5, **style)
        axes.vlines(between, -0.5, len(classes) - 0.5, **style)
    axes.spines[:].set_color(_LINES)
    axes.set_ylabel("true class", fontsize=10.5, color=_MUTED, labelpad=8)
    axes.set_xlabel("predicted class", fontsize=10.5, color=_MUTED, labelpad=8)


def _write_counts(axes: Axes, confusion: NDArray[np.int64], font: float, cell: float) -> None:
    """Counts in the cells, recall to the right of each row, precision above each column."""
    support, called, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    digits = len(f"{confusion.max():,}")
    size = min(font, cell * 0.85 / (digits * 0.62))
    for row, column in zip(*np.nonzero(confusion), strict=True):
        deep = confusion[row, column] / support[row] > (0.55 if row == column else 0.4)
        axes.text(
            column,
            row,
            f"{confusion[row, column]:,}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if deep else _INK,
        )
    edge: dict[str, Any] = {"textcoords": "offset points", "fontsize": font * 0.85, "color": _MUTED}
    last = len(confusion) - 0.5
    axes.annotate("recall", (last, -0.5), xytext=(5, 5), **edge)
    axes.annotate("precision", (-0.5, -0.5), xytext=(-4, 5), ha="right", **edge)
    for index in range(len(confusion)):
        recall = _per_cent(right[index], support[index])
        axes.annotate(recall, (last, index), xytext=(5, 0), va="center", **edge)
        precision = _per_cent(right[index], called[index])
        axes.annotate(precision, (index, -0.5), xytext=(0, 5), ha="center", **edge)


def _write_heading(axes: Axes, title: str, note: str, *, room: float) -> None:
    at: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "parse_math": False}
    at["textcoords"] = "offset points"
    axes.annotate(note, xytext=(0, room), fontsize=9.5, color=_MUTED, **at)
    axes.annotate(title, xytext=(0, room + 16), fontsize=13, fontweight="bold", color=_INK, **at)


def _per_cent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
