"""Plot learning curves: losses, accuracy, learning rate, gradient and cost of each epoch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from skipnets.axes import INPUTS, worded
from skipnets.files import atomic_path
from skipnets.training.config import TrainConfig
from skipnets.training.run import Row

_NOTE_WIDTH = 150  # characters


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The colors of a chart: text, quieter text, lines, background, training and validation."""

    ink: str
    soft: str
    line: str
    surface: str
    train: str
    validation: str

    def style(self) -> Any:
        """Matplotlib's settings for a chart in these colors."""
        return {
            "font.size": 10.5,
            "text.color": self.ink,
            "axes.edgecolor": self.line,
            "axes.labelcolor": self.soft,
            "axes.linewidth": 1,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "grid.color": self.line,
            "grid.linewidth": 0.8,
            "xtick.color": self.line,
            "ytick.color": self.line,
            "xtick.labelcolor": self.soft,
            "ytick.labelcolor": self.soft,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }


# Colors of the report in light mode (report/page.css).
PAPER = Palette(
    ink="#1a222c", soft="#5a6675", line="#dfe3e8", surface="#ffffff", train="#c4560a", validation="#1d62b8"
)


def draw_curves(
    rows: Sequence[Row], best_epoch: int, path: Path, *, title: str, note: str = "", dims: int = 2
) -> None:
    """Draw losses, accuracy, learning rate, gradient norm, speed and memory over the epochs.

    Args:
        rows: One per epoch.
        best_epoch: Epoch to mark, counted from 1.
        path: A PNG file; an existing one is replaced.
        title: Title of the figure.
        note: Text below the charts, such as from `loss_note`.
        dims: Spatial axes of the inputs, by which they are called.
    """
    best = next(row for row in rows if row.epoch == best_epoch)
    note = textwrap.fill(note, _NOTE_WIDTH)
    with mpl.rc_context(PAPER.style()):
        measured = [name for name in MEASURES if has_measure(rows, name)]
        figure = Figure(
            figsize=(12, (7.2 if measured else 4.1) + 0.2 * note.count("\n")),
            dpi=150,
            layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12),
        )
        figure.suptitle(title, fontsize=13, weight="bold", x=0.012, ha="left", parse_math=False)
        grid = figure.add_gridspec(2 if measured else 1, 12, height_ratios=(3, 2) if measured else None)
        losses, accuracy, rate = (figure.add_subplot(grid[0, 4 * n : 4 * n + 4]) for n in range(3))
        plot_losses(losses, rows, PAPER)
        losses.legend(loc="best")
        plot_accuracy(accuracy, rows, best_epoch, PAPER)
        plot_learning_rate(rate, rows, PAPER)
        losses.set_title("Loss")
        accuracy.set_title(f"{headline_name(best)}, epoch {best.epoch}: {headline_text(best)}")
        rate.set_title("Learning rate")
        for number, name in enumerate(measured):
            axes = figure.add_subplot(grid[1, 3 * number : 3 * number + 3])
            plot_measure(axes, rows, name, PAPER)
            axes.set_title(worded(MEASURES[name], dims))
        if note:
            figure.supxlabel(note, fontsize=9.5, color=PAPER.soft, x=0.012, ha="left")
        with atomic_path(path) as temporary:
            figure.savefig(temporary)


def loss_note(config: TrainConfig) -> str:
    """Explain why the training loss may be above the validation loss; empty if it should not be."""
    if "loss" in config.supplied:
        return "The training loss is the program's own and the validation loss is not: they do not compare."
    on_images = {
        "MixUp": config.mixup,
        "CutMix": config.cutmix,
        f"augmented {INPUTS[config.dims or 2]} ({config.augmentation})": config.augmentation
        not in (None, "none"),
        "dropout": any(
            config.model_options.get(name) for name in ("drop_rate", "proj_drop_rate", "drop_path_rate")
        ),
    }
    shown = [reason for reason, applies in on_images.items() if applies]
    applicable = [f"label smoothing {config.label_smoothing:g}"] if config.label_smoothing else []
    applicable += ["the teacher's share"] if config.teacher is not None else []
    applicable += shown
    if not applicable:
        return ""
    has_accuracy = shown and config.task != "regression"
    also = " The same holds for the accuracies, the other way round." if has_accuracy else ""
    return (
        f"The training loss includes {_listed(applicable)}; the validation loss does not. So it is normal "
        f"for the training loss to be above the validation loss.{also}"
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def plot_losses(axes: Axes, rows: Sequence[Row], colors: Palette) -> None:
    """Plot training and validation loss."""
    epochs = [row.epoch for row in rows]
    style: dict[str, Any] = {"marker": _marker(rows), "markersize": 4}
    axes.plot(epochs, [row.train_loss for row in rows], color=colors.train, label="training", **style)
    axes.plot(epochs, [row.val_loss for row in rows], color=colors.validation, label="validation", **style)
    every = [loss for row in rows for loss in (row.train_loss, row.val_loss) if math.isfinite(loss)]
    if every and min(every) > 0 and max(every) > 10 * float(np.median(every)):
        # Log scale, so that a very high loss at the start does not flatten the rest.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.06 * (max(every, default=0) or 1))
    _label_epochs(axes)


def headline(row: Row) -> float:
    """The validation metric that is looked at first: `headline_name` says which."""
    found = (row.val_mae, row.val_average_precision, row.val_accuracy)
    return next((value for value in found if value is not None), math.nan)


def headline_name(row: Row) -> str:
    """The name of that metric."""
    if row.val_mae is not None:
        return "MAE"
    return "Accuracy" if row.val_average_precision is None else "Mean average precision"


def headline_text(row: Row) -> str:
    """Its value: a share, or of numbers in the target's units."""
    return f"{headline(row):.4g}" if row.val_mae is not None else f"{headline(row):.1%}"


def plot_accuracy(axes: Axes, rows: Sequence[Row], best_epoch: int, colors: Palette) -> None:
    """Plot training and validation accuracy, or what else is the headline, and mark the best epoch."""
    accuracy = {row.epoch: headline(row) for row in rows}
    training = {
        row.epoch: row.train_accuracy
        for row in rows
        if row.train_accuracy is not None and row.val_average_precision is None
    }
    axes.plot(list(training), list(training.values()), color=colors.train, marker=_marker(rows), markersize=4)
    axes.plot(
        list(accuracy), list(accuracy.values()), color=colors.validation, marker=_marker(rows), markersize=4
    )
    if best_epoch in accuracy:
        axes.plot(
            best_epoch,
            accuracy[best_epoch],
            "o",
            color=colors.validation,
            markersize=8,
            markeredgecolor=colors.surface,
        )
    if any(row.val_mae is None for row in rows):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.margins(y=0.08)
    _label_epochs(axes)


def plot_learning_rate(axes: Axes, rows: Sequence[Row], colors: Palette) -> None:
    """Plot the learning rate."""
    epochs, rates = [row.epoch for row in rows], [row.lr for row in rows]
    axes.plot(epochs, rates, color=colors.soft, marker=_marker(rows), markersize=4)
    axes.set_ylim(0, 1.06 * (max(rates) or 1))
    _label_epochs(axes)


MEASURES = {
    "gradient_norm": "Gradient norm",
    "images_per_second": "Images a second",
    "processor_seconds": "Processor seconds",
    "memory": "Peak memory, MiB",
}
"""What rows measure besides loss, accuracy and rate, with the charts' titles."""


def has_measure(rows: Sequence[Row], name: str) -> bool:
    """Whether any row has this measure; those of version 0.1 have none."""
    return any(getattr(row, name) is not None for row in rows)


def plot_measure(axes: Axes, rows: Sequence[Row], name: str, colors: Palette) -> None:
    """Plot one of `MEASURES`."""
    values = {row.epoch: value for row in rows if (value := getattr(row, name)) is not None}
    axes.plot(list(values), list(values.values()), color=colors.soft, marker=_marker(rows), markersize=4)
    axes.set_ylim(0, 1.08 * (max(filter(math.isfinite, values.values()), default=0) or 1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    _label_epochs(axes)


def _label_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def _marker(rows: Sequence[Row]) -> str:
    """Markers for few epochs, as a single epoch is not a line."""
    return "o" if len(rows) <= 12 else ""
