"""The course of a training as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from skipnets.files import atomic_path
from skipnets.training.run import Row

_TRAIN, _VALIDATION, _MUTED = "#9a6700", "#0b62a8", "#6b7280"


def draw_curves(rows: Sequence[Row], best_epoch: int, path: Path, *, title: str) -> None:
    """Draw losses, validation accuracy and learning rate over the epochs.

    Args:
        rows: One an epoch.
        best_epoch: The one to mark, counted from 1.
        path: A PNG file; replaced if it is there.
        title: What was trained on what.
    """
    epochs = [row.epoch for row in rows]
    best = next(row for row in rows if row.epoch == best_epoch)
    figure = Figure(figsize=(10, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    losses, accuracy, rate = figure.subplots(1, 3, width_ratios=(4, 4, 2.4))

    # The training loss has label smoothing and mixing in it, so it may lie above the other.
    losses.plot(epochs, [row.train_loss for row in rows], color=_TRAIN, label="training (as minimized)")
    losses.plot(epochs, [row.val_loss for row in rows], color=_VALIDATION, label="validation")
    losses.set_title("loss")
    losses.legend(frameon=False)
    losses.set_ylim(bottom=0)

    accuracy.plot(epochs, [row.val_accuracy for row in rows], color=_VALIDATION)
    accuracy.plot(best.epoch, best.val_accuracy, "o", color=_VALIDATION)
    accuracy.set_title(f"validation accuracy ({best.val_accuracy:.2%} in epoch {best.epoch})")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))

    rate.plot(epochs, [row.lr for row in rows], color=_MUTED)
    rate.set_title("learning rate")
    rate.set_ylim(bottom=0)

    for axes in (losses, accuracy, rate):
        axes.title.set_size(10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
