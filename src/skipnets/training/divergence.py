"""Notice within 50 steps that a training has diverged, and say what to change."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from skipnets.errors import UserError
from skipnets.training.config import ResolvedConfig
from skipnets.training.run import Run
from skipnets.training.task import ClassificationTask

# A loss that no labels and no smoothing explain: the logits are in the thousands.
LARGEST_LOSS = 1e4
# Looking at a number waits for the GPU, and for the other processes.
_SELDOM = 50


class DivergenceError(UserError):
    """The training diverged; the message says where, and what to change."""

    exit_status = 1


class Divergence(Callback):
    """Ends the run when the loss of a step is not finite or absurdly large.

    Args:
        run: For the message: its best model so far.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._worst: Tensor | None = None

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss after every step.

        On a GPU or with several processes: after every 50 steps, and after the last one of an epoch.
        """
        loss = outputs["loss"].detach().nan_to_num(nan=math.inf, posinf=math.inf)
        self._worst = loss if self._worst is None else torch.maximum(self._worst, loss)
        together = trainer.world_size > 1
        seldom = loss.is_cuda or together
        if seldom and (batch_idx + 1) % _SELDOM and not trainer.is_last_batch:
            return
        # All processes end: one alone would leave the others waiting for it.
        worst = float(trainer.strategy.reduce(self._worst, reduce_op="max") if together else self._worst)
        self._worst = None
        if worst > LARGEST_LOSS:
            assert isinstance(pl_module, ClassificationTask)
            epoch = trainer.current_epoch + 1
            raise DivergenceError(message(pl_module.config, self.run, epoch, batch_idx + 1, worst))


def message(config: ResolvedConfig, run: Run, epoch: int, step: int | None, loss: float) -> str:
    """One line: where it diverged, what to change, and which model is left."""
    where = f"epoch {epoch}" if step is None else f"epoch {epoch}, step {step}"
    what = f"the loss is {loss:.3g}" if math.isfinite(loss) else "the loss is not finite"
    if (epoch, step) == (1, 1):  # of the weights that it began with
        found = what.removeprefix("the loss ")
        return f"loss: {found} in the first step, before any weight has changed: another lr will not help"
    advice = ["a tenth of it may be right"]
    if config.clip == 0:
        advice.append("clip=5 shortens long gradients")
    if config.warmup == 0:
        advice.append("warmup=1 starts at a low rate")
    if config.precision == "16-mixed":
        advice.append("precision=32-true has a larger range")
    text = f"lr: training diverged in {where} ({what}), with lr={config.lr:g}; {', or '.join(advice)}"
    if run.model.exists():
        text += f"; the best model so far (epoch {run.best_epoch}) is {run.model}"
    return text


def average_note(decay: float, *, val_loss: float, train_loss: float, guessing: float) -> str | None:
    """Say that averaged weights are far behind the trained ones; None where they are not.

    Args:
        decay: Of the average.
        val_loss: Of the averaged weights.
        train_loss: Of the trained weights.
        guessing: The loss of one who knows nothing of the images, such as ln(K) with K classes.
    """
    if val_loss < 3 * guessing or val_loss < 3 * train_loss:
        return None
    return (
        f"the averaged weights (ema={decay:g}) are far behind: validation loss {val_loss:.3g}, training loss "
        f"{train_loss:.3g}; if it stays so, --ema 0 saves the plain weights"
    )
