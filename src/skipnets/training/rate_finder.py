"""Find a learning rate: raise it from step to step, and see where the loss falls fastest (Smith 2017)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.tuner.tuning import Tuner
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from skipnets.data.dataset import ImageDataset
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.training.callbacks import seed_everything
from skipnets.training.copying import own_copy
from skipnets.training.curves import PAPER
from skipnets.training.data import ImageDataModule
from skipnets.training.gpu_memory import out_of_memory
from skipnets.training.prepare import Prepared
from skipnets.training.quiet import quiet_lightning
from skipnets.training.regression import scaled_dataset, target_scales
from skipnets.training.run import Run
from skipnets.training.speed import device_count
from skipnets.training.supplied import Supplied
from skipnets.training.task import Batch, ClassificationTask
from skipnets.training.tasks import make_task

__all__ = ["RatePlot", "RateSearch", "find_rate", "with_found_rate"]

LOWEST, HIGHEST = 1e-5, 10.0
STEPS = 100
# The first losses are those of random weights at rates that change nothing.
_SKIPPED = 10
# How much of the average loss each step keeps.
_KEPT = 0.98
# The plot ends so far above the first loss, in units of how far the loss falls: beyond, it only diverges.
_SHOWN_RISE = 1.5


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """The loss at rising learning rates. S steps.

    Attributes:
        rates: (S,) the rate of each step.
        losses: (S,) the training loss, averaged over the steps before.
        suggestion: The rate at which the loss falls fastest, over the logarithm of the rate.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    suggestion: float

    def draw(self, path: Path) -> None:
        """Draw the losses over the rates, and mark the suggestion; a PNG file."""
        with mpl.rc_context(PAPER.style()):
            figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
            axes = figure.subplots()
            axes.plot(self.rates, self.losses, color=PAPER.train)
            axes.axvline(self.suggestion, color=PAPER.validation, linewidth=1.2)
            axes.annotate(
                f"{self.suggestion:.2g}, the steepest descent",
                (self.suggestion, 1),
                xycoords=("data", "axes fraction"),
                xytext=(6, -4),
                textcoords="offset points",
                color=PAPER.validation,
                va="top",
            )
            axes.set_xscale("log")
            axes.set_xlabel("learning rate, which rises from step to step")
            axes.set_ylabel("training loss, averaged")
            axes.set_title("Training loss as the learning rate rises")
            sound = self.losses[np.isfinite(self.losses)]
            fall = max(float(sound[0] - sound.min()), 0.05 * float(sound[0]))
            axes.set_ylim(
                sound.min() - 0.2 * fall, min(sound.max(), sound[0] + _SHOWN_RISE * fall) + 0.2 * fall
            )
            with atomic_path(path) as temporary:
                figure.savefig(temporary)


class _AtRisingRate(pl.LightningModule):
    """Trains as a task does, with its optimizer but without its schedule.

    Args:
        task: The task.
    """

    def __init__(self, task: ClassificationTask) -> None:
        super().__init__()
        self.task = task
        self.losses: list[Tensor] = []
        self.multiples: list[float] = []

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """None takes place; Lightning wants one where there are validation images."""

    @override
    def configure_gradient_clipping(self, optimizer: Optimizer, *limits: Any, **named: Any) -> None:
        self.task.configure_gradient_clipping(optimizer, *limits, **named)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.task.configure_optimizers()["optimizer"]
        self.multiples = [group["initial_lr"] / self.task.config.lr for group in optimizer.param_groups]
        return optimizer

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with the multiple of the rate that each group has in the training, as with `bias_lr`.

        The finder gives all groups one rate, anew after each step.
        """
        for group, multiple in zip(optimizer.param_groups, self.multiples, strict=True):
            group["lr"] *= multiple
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def find_rate(prepared: Prepared, dataset: ImageDataset, supplied: Supplied | None = None) -> RateSearch:
    """Train a copy of the network for 100 steps at rising rates, with Lightning's finder.

    Args:
        prepared: What a run would start with; it is not changed.
        dataset: Of which training images are used.
        supplied: What a program hands over beside the configuration, of which the loss is copied.

    Raises:
        UserError: There are too few steps to tell, several devices, or the GPU's memory is too small.
    """
    config = prepared.config
    if (count := device_count(config.devices, config.accelerator)) != 1:
        raise UserError(f"find_lr: needs one device, not {count}")
    seed_everything(config.seed)
    train = dataset.split("train")
    val = dataset.split("val")
    copied = dataclasses.replace(prepared, model=own_copy(prepared.model, "model"))
    loss = None if supplied is None else own_copy(supplied.loss, "loss")
    task = make_task(copied, Supplied(loss=loss), train)
    if train.regression:
        scales = target_scales(config, train)
        train, val = (scaled_dataset(each, scales) for each in (train, val))
    data = ImageDataModule(train, val, prepared.preprocessing, config, shares=1)
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            max_epochs=-1,
            max_steps=STEPS,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip or None,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        at_rising_rate = _AtRisingRate(task)
        try:
            with _progress_on_terminals_alone():
                finder = Tuner(trainer).lr_find(
                    at_rising_rate,
                    datamodule=data,
                    min_lr=LOWEST,
                    max_lr=HIGHEST,
                    num_training=STEPS,
                    update_attr=False,
                )
        except torch.OutOfMemoryError:
            raise UserError(out_of_memory(Run(config.out), config, task.model)) from None
        finally:
            data.close()
    assert finder is not None
    # The finder's own averages begin at half of the first loss: they are corrected for one step too many.
    steps = np.array(
        [float(loss) for loss in at_rising_rate.losses[config.accumulate - 1 :: config.accumulate]]
    )
    rates = np.array(finder.results["lr"], dtype=np.float64)[: len(steps)]
    losses = averaged(steps[: len(rates)])
    return RateSearch(rates=rates, losses=losses, suggestion=steepest(rates, losses))


def averaged(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S,) at each step the mean of the losses so far, of which older ones count less."""
    found = np.empty(len(losses))
    total = weight = 0.0
    for step, loss in enumerate(losses):
        total, weight = _KEPT * total + loss, _KEPT * weight + 1
        found[step] = total / weight
    return found


@contextlib.contextmanager
def _progress_on_terminals_alone() -> Iterator[None]:
    """Keep the finder's progress bar, a line that is written a hundred times, out of log files."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def steepest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float:
    """The rate around which the loss falls fastest over the logarithm of the rate, before its minimum."""
    sound = np.isfinite(losses)
    rates, losses = rates[sound][_SKIPPED:], losses[sound][_SKIPPED:]
    lowest = int(losses.argmin()) if len(losses) else 0
    if lowest < 2:
        raise UserError("find_lr: the loss does not fall at any rate; give --lr")
    return float(rates[_slopes(np.log(rates[: lowest + 1]), losses[: lowest + 1]).argmin()])


def _slopes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S,) at each point the slope of the line through it and those around, as batches differ."""
    around = max(len(x) // 8, 2)
    found = np.empty(len(x))
    for middle in range(len(x)):
        part = slice(max(middle - around, 0), middle + around + 1)
        found[middle] = np.polyfit(x[part], y[part], 1)[0]
    return found


class RatePlot(Callback):
    """Draws the search when training begins: until then there is no run folder.

    Args:
        search: What was found.
        path: Where to.
    """

    def __init__(self, search: RateSearch, path: Path) -> None:
        self.search = search
        self.path = path

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw it once, in the first process."""
        if trainer.is_global_zero:
            self.search.draw(self.path)


def with_found_rate(
    prepared: Prepared, dataset: ImageDataset, say: Callable[[str], None], supplied: Supplied | None = None
) -> tuple[Prepared, RateSearch | None]:
    """What a run starts with, with the rate that was found for it if its configuration asks for that.

    Args:
        prepared: Without that rate.
        dataset: Of which training images are used.
        say: Shows a line.
        supplied: What a program hands over beside the configuration.
    """
    if not prepared.config.find_lr:
        return prepared, None
    search = find_rate(prepared, dataset, supplied)
    rate = float(f"{search.suggestion:.3g}")
    say(f"learning rate {rate:g}, where the loss falls fastest (from {LOWEST:g} to {HIGHEST:g})")
    config = dataclasses.replace(prepared.config, lr=rate, find_lr=False)
    return dataclasses.replace(prepared, config=config), search
