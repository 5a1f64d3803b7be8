"""Metrics of epochs, as a training records them."""

from __future__ import annotations

from skipnets.training.run import Row


def make_row(epoch: int, *, loss: float = 1.0, accuracy: float = 0.5, balanced: float | None = None) -> Row:
    """An epoch with this validation loss and accuracy; the balanced one is the same unless it is given."""
    return Row(
        epoch=epoch,
        lr=0.1,
        train_loss=1.0,
        val_loss=loss,
        val_accuracy=accuracy,
        val_balanced_accuracy=accuracy if balanced is None else balanced,
        seconds=12.34,
        validation_seconds=1.0,
    )
