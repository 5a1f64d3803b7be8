"""Show in a notebook how far a training is: a bar, the expected end, and the epochs so far, in one place."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import rich
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from skipnets.tables import as_html, make_table
from skipnets.training.progress_lines import ExpectedEnd, end_text
from skipnets.training.run import Row

__all__ = ["NotebookProgress", "epochs_table", "in_notebook"]

_INTERVAL = 0.5
# How many epochs are shown at most; the others are in `metrics.csv`.
_SHOWN = 15
_BAR = '<progress max="{steps}" value="{done}" style="width: 24em; vertical-align: middle"></progress> {text}'


class NotebookProgress(Callback):
    """Shows a training as HTML that is replaced as it goes on.

    Args:
        end: Estimates the end; it comes before this one in the list of callbacks.
        rows: Returns the epochs so far, and the number of the best one.
    """

    def __init__(self, end: ExpectedEnd, rows: Callable[[], tuple[Sequence[Row], int]]) -> None:
        self.end = end
        self.rows = rows
        self._handle: Any = None
        self._shown = 0.0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, at most twice a second."""
        if time.perf_counter() - self._shown >= _INTERVAL:
            self._show(trainer, batch_idx + 1)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch's row; its place in the list of callbacks is behind what makes it."""
        self._show(trainer, int(trainer.num_training_batches))

    def _show(self, trainer: pl.Trainer, step: int) -> None:
        if not trainer.is_global_zero:
            return
        self._shown = time.perf_counter()
        epoch, epochs, steps = (
            trainer.current_epoch,
            trainer.max_epochs or 0,
            int(trainer.num_training_batches),
        )
        done = epoch * steps + step
        text = f"epoch {epoch + 1} of {epochs}, step {step} of {steps}"
        if done < epochs * steps and (seconds := self.end.seconds(trainer)) is not None:
            text += f", {end_text(seconds)}"
        html = _BAR.format(steps=epochs * steps, done=done, text=text)
        rows, best = self.rows()
        if rows:
            html += as_html([epochs_table(rows, best)])
        # There is IPython wherever there is a notebook; nothing else needs it.
        display: Any = importlib.import_module("IPython.display")
        if self._handle is None:
            self._handle = display.display(display.HTML(html), display_id=True)
        else:
            self._handle.update(display.HTML(html))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return rich.get_console().is_jupyter


def epochs_table(rows: Sequence[Row], best: int) -> Any:
    """A table of the last epochs, with the best one marked.

    Args:
        rows: In order.
        best: The number of the best epoch.
    """
    scores = {
        "val_mae": "val MAE",
        "val_average_precision": "val mAP",
        "val_accuracy": "val accuracy",
    }
    score = next(name for name in scores if getattr(rows[-1], name) is not None)
    columns = ("epoch", "train loss", "val loss", scores[score], "s", "")
    return make_table(
        {name: "left" if name == "" else "right" for name in columns},
        (
            [
                str(row.epoch),
                f"{row.train_loss:.4f}",
                f"{row.val_loss:.4f}",
                _score(score, getattr(row, score)),
                f"{row.seconds:.1f}",
                "best" if row.epoch == best else "",
            ]
            for row in rows[-_SHOWN:]
        ),
    )


def _score(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "val_accuracy" else f"{value:.4g}"
