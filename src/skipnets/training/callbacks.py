"""Lightning callbacks: seeding, averaged weights, metrics of each epoch, the best model."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, RichProgressBar, WeightAveraging
from torch import Tensor
from typing_extensions import override

from skipnets.models.backbone import Backbone
from skipnets.training.best_epoch import MONITORED, Resolution, best_row
from skipnets.training.config import BestBy
from skipnets.training.data import ImageDataModule
from skipnets.training.divergence import DivergenceError, average_note, message
from skipnets.training.meter import Meter
from skipnets.training.optimization import average_towards
from skipnets.training.progress_lines import ExpectedEnd, clock_time
from skipnets.training.run import Row, Run, write_metrics, write_skipped
from skipnets.training.task import ClassificationTask


def seed_everything(seed: int, *position: int) -> None:
    """Seed Python, NumPy and torch from a run's seed and a position in the run (epoch, device)."""
    state = int(np.random.SeedSequence([seed, *position]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 — what libraries without a generator of their own draw from
    torch.manual_seed(state)


class EpochSeeds(Callback):
    """Makes randomness in an epoch (dropout, MixUp) depend only on seed, epoch and device.

    So an epoch restarted after an interruption is the same epoch, and no generator's state needs
    saving. The seed is set at the first batch, not at the epoch's start: loaders draw numbers when they
    begin, and a resumed run begins with other loaders than one that has been running.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed at the first batch of an epoch."""
        if batch_idx == 0:
            seed_everything(self.seed, trainer.current_epoch, trainer.global_rank)


class Averaging(WeightAveraging):
    """Exponential moving average of weights and norm statistics, which is validated and saved.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n steps, so that the average forgets the random
    weights in a short run too (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._update)
        self.decay = decay

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Create the average; its counter stays on the CPU, where reading it does not wait for a device."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    @property
    def model(self) -> Backbone[Any]:
        """The averaged network."""
        assert self._average_model is not None
        task = self._average_model.module
        assert isinstance(task, ClassificationTask)
        return task.model

    def _update(self, average: Any, current: Any, _steps: Tensor | int) -> None:
        count = int(self._average_model.n_averaged) if self._average_model is not None else 0
        decay = min(self.decay, (1 + count) / (10 + count))
        average_towards(list(average), list(current), 1 - decay)


class Patience(EarlyStopping):
    """Early stopping that also holds when a run is resumed after it had already decided to stop."""

    def __init__(self, best_by: BestBy, epochs: int) -> None:
        monitor, mode = MONITORED[best_by]
        super().__init__(monitor, mode=mode, patience=epochs, check_on_train_epoch_end=True)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the first batch if patience had run out."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Record(Callback):
    """Collects one row per epoch, writes `metrics.csv`, and `model.safetensors` after every new best epoch.

    `best_row` says which epoch is the best.

    Args:
        run: The run to write to.
        best_by: The metric that picks the best epoch.
        resolution: Of an accuracy on the validation images.
        epochs: Maximum number of epochs.
        average: Averaged weights to save; None saves the task's own.
        save: Saves a model and the row of its epoch as the run's best.
        say: Prints one line.
        lines: Whether to print one for each epoch.
    """

    def __init__(
        self,
        run: Run,
        *,
        best_by: BestBy,
        resolution: Resolution,
        epochs: int,
        average: Averaging | None,
        save: Callable[[Backbone[Any], Row], None],
        say: Callable[[str], None],
        lines: bool = True,
    ) -> None:
        self.run = run
        self.best_by: BestBy = best_by
        self.resolution = resolution
        self.epochs = epochs
        self.average = average
        self.save = save
        self.say = say
        self.lines = lines
        self.rows: list[Row] = []
        self._epoch_started = self._validation_started = time.perf_counter()
        self._validation_seconds = 0.0
        self._seconds_before = 0.0
        self._images = 0
        self._meter = Meter(torch.device("cpu"))
        self._average_noted = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, at what it showed where training goes on within an epoch."""
        self._epoch_started = time.perf_counter() - self._seconds_before
        self._meter = Meter(pl_module.device)
        self._meter.start()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._epoch_started = time.perf_counter()
        self._images = 0
        self._meter = Meter(pl_module.device)
        self._meter.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and look at the memory."""
        self._images += len(batch[1]) * trainer.world_size
        self._meter.sample()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start validation's clock."""
        self._validation_started = time.perf_counter()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop validation's clock."""
        self._validation_seconds = time.perf_counter() - self._validation_started

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete the epoch's row; runs before early stopping and before the checkpoint is written."""
        assert isinstance(pl_module, ClassificationTask)
        if trainer.is_global_zero:
            self.run.check_present()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]  # the first group is never one of biases alone
        seconds = time.perf_counter() - self._epoch_started - self._validation_seconds
        row = Row(
            epoch=trainer.current_epoch + 1,
            lr=rate,
            train_loss=metrics["train_loss"],
            val_loss=metrics["val_loss"],
            val_accuracy=metrics.get("val_accuracy"),
            val_balanced_accuracy=metrics.get("val_balanced_accuracy"),
            seconds=seconds,
            validation_seconds=self._validation_seconds,
            train_accuracy=metrics["train_accuracy"] if "val_accuracy" in metrics else None,
            gradient_norm=pl_module.take_gradient_norm(),
            images_per_second=self._images / seconds,
            processor_seconds=self._meter.processor_seconds,
            memory=self._meter.memory,
            val_average_precision=metrics.get("val_average_precision"),
            val_auroc=metrics.get("val_auroc"),
            val_mae=metrics.get("val_mae"),
            val_r2=metrics.get("val_r2"),
            further={name: metrics[name] for name in pl_module.further},
        )
        self._check(pl_module, row)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        failures = gather_failures(trainer, data.failures)
        self.rows.append(row)
        kept = self.best() is row
        if trainer.is_global_zero:
            if kept:
                self.save(self.average.model if self.average is not None else pl_module.model, row)
            write_metrics(self.run.metrics, self.rows)
            write_skipped(self.run, failures)
            if self.lines:
                self.say(epoch_line(row, trainer.max_epochs or self.epochs, kept=kept))
            self._log(pl_module, row)

    def best(self) -> Row | None:
        """The best epoch so far."""
        return best_row(self.rows, self.best_by, self.resolution)

    def epochs_so_far(self) -> tuple[list[Row], int]:
        """The rows, and the number of the best epoch; 0 before the first."""
        best = self.best()
        return self.rows, 0 if best is None else best.epoch

    def _check(self, task: ClassificationTask, row: Row) -> None:
        """End the run if the losses are not finite; say once if the averaged weights are far behind."""
        if not np.isfinite([row.train_loss, row.val_loss]).all():
            raise DivergenceError(message(task.config, self.run, row.epoch, None, math.nan))
        if self.average is None or self._average_noted:
            return
        note = average_note(
            self.average.decay,
            val_loss=row.val_loss,
            train_loss=row.train_loss,
            guessing=task.guessing_loss,
        )
        if note is not None:
            self._average_noted = True
            self.say(note)

    def _log(self, task: ClassificationTask, row: Row) -> None:
        """What TensorBoard does not get from the task."""
        names = ("gradient_norm", "images_per_second", "processor_seconds", "memory")
        values = {name: value for name in names if (value := getattr(row, name)) is not None}
        for logger in task.loggers:
            logger.log_metrics(values, step=task.global_step)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The rows and the epoch's seconds so far, for the checkpoint."""
        seconds = time.perf_counter() - self._epoch_started
        rows = [row.to_dict() for row in self.rows]
        return {"rows": rows, "seconds": seconds, "images": self._images}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows up to the epoch that the checkpoint follows."""
        self.rows = [Row.from_dict(row) for row in state_dict["rows"]]
        self._seconds_before = state_dict.get("seconds", 0.0)
        self._images = state_dict.get("images", 0)


class LiveCurves(Callback):
    """Draws the learning curves while the run goes on, for at most a hundredth of its time.

    Args:
        record: It comes before this one in the list of callbacks.
        draw: Draws rows, of which one epoch is the best.
    """

    def __init__(self, record: Record, draw: Callable[[list[Row], int], None]) -> None:
        self.record = record
        self.draw = draw
        self._drawn, self._cost = time.perf_counter(), 1.0

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, if the last time is long enough ago."""
        started = time.perf_counter()
        best = self.record.best()
        if best is None or started - self._drawn < 100 * self._cost or not trainer.is_global_zero:
            return
        self.draw(self.record.rows, best.epoch)
        self._drawn = time.perf_counter()
        self._cost = self._drawn - started


class EpochBar(RichProgressBar):
    """Lightning's progress bar on standard error, with epochs counted from 1, and the expected end.

    Args:
        end: Estimates the end.
    """

    def __init__(self, end: ExpectedEnd) -> None:
        super().__init__(refresh_rate=10, console_kwargs={"stderr": True})
        self.end = end

    @override
    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Show no metrics: they are in the epoch's line."""
        return {}

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        remaining = self.end.seconds(self.trainer)
        return text if remaining is None else f"{text}, ends at {clock_time(remaining)}"


def gather_failures(trainer: pl.Trainer, failures: dict[str, str]) -> dict[str, str]:
    """Gather the undecodable images of all processes."""
    if trainer.world_size == 1:
        return failures
    parts: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, failures)
    return {name: reason for part in parts for name, reason in part.items()}


def epoch_line(row: Row, epochs: int, *, kept: bool) -> str:
    """The line printed after an epoch."""
    if row.val_mae is not None:
        score = f"MAE {row.val_mae:.4g}"
    elif row.val_average_precision is not None:
        score = f"mAP {row.val_average_precision:.3f}"
    else:
        score = f"accuracy {row.val_accuracy or 0:6.2%}"
    return (
        f"epoch {row.epoch:>{len(str(epochs))}}/{epochs}  train loss {row.train_loss:.4f}  "
        f"val loss {row.val_loss:.4f}  val {score}  "
        f"{row.seconds:.1f} s{'  best' if kept else ''}"
    )
