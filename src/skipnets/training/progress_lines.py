"""Say how far a training is, where no progress bar shows it: in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from skipnets.duration import format_duration
from skipnets.training.budget import VALIDATION_COST, finish_seconds

# Seconds before the first line, between the first two lines, and at most between two lines.
_FIRST, _SECOND, _MOST = 2.0, 15.0, 120.0
_YEAR = 365 * 24 * 3600.0


class ExpectedEnd(Callback):
    """Estimates when the run will have ended, from the steps and validations so far.

    Args:
        test: Number of test images, which are evaluated at the end.
        batch_size: Images of a step.
        to_read: Seconds that reading an image takes, where that was measured.
    """

    def __init__(self, *, test: int, batch_size: int, to_read: float = 0.0) -> None:
        self.test = test
        self.to_read = to_read
        self.batch_size = batch_size
        self._steps = self._validations = self._done = 0
        self._training = self._validation = 0.0
        self._step_ended = self._validation_started = time.perf_counter()

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of a training step; None before the second one."""
        return self._training / self._steps if self._steps else None

    def seconds(self, trainer: pl.Trainer) -> float | None:
        """Seconds from now to the end of the run; None before the second step."""
        if self.seconds_per_step is None:
            return None
        epochs = trainer.max_epochs or 0
        steps = int(trainer.num_training_batches)
        epochs_left = max(epochs - trainer.current_epoch, 0)
        steps_left = max(epochs_left * steps - self._done, 0)
        validation = (
            self._validation / self._validations
            if self._validations
            else sum(trainer.num_val_batches) * VALIDATION_COST * self.seconds_per_step
        )
        seconds_per_image = self.seconds_per_step / self.batch_size
        finish = finish_seconds(self.test, seconds_per_image, to_read=self.to_read)
        return steps_left * self.seconds_per_step + epochs_left * validation + finish

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure: what lies between epochs is not a step's."""
        self._done = 0
        self._step_ended = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step; an epoch's first one, which waits for the workers, only where there is no other."""
        now = time.perf_counter()
        self._done = batch_idx + 1
        if batch_idx or trainer.num_training_batches == 1:
            self._steps += 1
            self._training += now - self._step_ended
        self._step_ended = now

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start validation's clock."""
        self._validation_started = time.perf_counter()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop validation's clock."""
        self._validations += 1
        self._validation += time.perf_counter() - self._validation_started


class ProgressLines(Callback):
    """Prints a line soon after the start, and then at growing intervals while no epoch ends.

    Args:
        end: Estimates the end; it comes before this one in the list of callbacks.
        say: Prints a line.
    """

    def __init__(self, end: ExpectedEnd, say: Callable[[str], None]) -> None:
        self.end = end
        self.say = say
        self._due = time.perf_counter() + _FIRST
        self._interval = _SECOND

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._due = time.perf_counter() + _FIRST

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is time."""
        now = time.perf_counter()
        remaining = self.end.seconds(trainer)
        if now < self._due or remaining is None or not trainer.is_global_zero:
            return
        per_step = self.end.seconds_per_step
        assert per_step is not None
        self.say(
            progress_line(
                epoch=trainer.current_epoch + 1,
                epochs=trainer.max_epochs or 0,
                step=batch_idx + 1,
                steps=int(trainer.num_training_batches),
                loss=float(outputs["loss"]),
                seconds_per_step=per_step,
                remaining=remaining,
            )
        )
        self._due = now + self._interval
        self._interval = min(2 * self._interval, _MOST)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's own line is one, too."""
        self._due = time.perf_counter() + self._interval


def progress_line(
    *, epoch: int, epochs: int, step: int, steps: int, loss: float, seconds_per_step: float, remaining: float
) -> str:
    """One line on how far the training is: "epoch 1/20  step 30/230  loss 2.1034  0.12 s a step  …"."""
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  step {step}/{steps}  loss {loss:.4f}  "
        f"{seconds_per_step:.2g} s a step  {end_text(remaining)}"
    )


def end_text(remaining: float) -> str:
    """When something ends that takes so many seconds more: "ends at 14:32, in 5 min 10 s"."""
    if remaining > _YEAR:
        return "ends in more than a year"
    remaining = max(remaining, 0.0)
    return f"ends at {clock_time(remaining)}, in {format_duration(remaining)}"


def clock_time(remaining: float) -> str:
    """The time of day in so many seconds, such as 14:32."""
    return f"{datetime.now().astimezone() + timedelta(seconds=remaining):%H:%M}"
