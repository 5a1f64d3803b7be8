"""A training within a budget of time: how many epochs fit, and corrections while it runs.

What was decided is recorded in `run.yaml` (`epochs`, `epoch_images`, `epoch_plan`), so a resumed or repeated
run keeps its schedule whatever the clock says.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from skipnets.duration import format_duration
from skipnets.training.config import ResolvedConfig

# What a run's budget is measured with, in seconds; benchmarks put the processor's time in its place.
clock: Callable[[], float] = time.perf_counter

# A validation image costs about a third of a training image: no gradient.
VALIDATION_COST = 1 / 3
# The share of a budget that validation may take; where it would take more, epochs are longer.
VALIDATION_SHARE = 0.1
FEWEST_EPOCHS, MOST_EPOCHS = 4, 100
# Loading the best model, drawing and writing, and how much slower than in validation a test image is.
_FINISH_SECONDS, _TEST_COST = 4.0, 1.5
# An epoch is given up only where it would overrun the budget by more than this share of itself.
_TOLERANCE = 0.15
# Epochs are added only before this share of the training is done: later the rate is already low.
_EXTENDED_UNTIL = 0.8
# Seconds of training by which a run's end is foretold.
_FORECAST_AFTER = 4.0


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """How many epochs of how many images fit into a budget.

    Attributes:
        epochs: Number of epochs.
        images: Training images of each: a whole number of passes, or the part of one that fits.
    """

    epochs: int
    images: int


def plan_epochs(train: int, val: int, *, seconds_per_image: float, seconds: float) -> EpochPlan:
    """Divide a budget into epochs.

    An epoch is one pass over the training images where 4 to 100 of these fit; several passes where more fit,
    or where validation after each would take more than a tenth of the time; a part of one otherwise.

    Args:
        train: Number of training images.
        val: Number of validation images.
        seconds_per_image: Seconds that a training image takes.
        seconds: The budget, without the evaluation at the end.
    """
    affordable = max(seconds / seconds_per_image, 1.0)  # training images, if there were no validation
    most_epochs = VALIDATION_SHARE * affordable / max(val * VALIDATION_COST, 1e-9)
    passes = affordable / (train + val * VALIDATION_COST)
    if passes < FEWEST_EPOCHS:
        images = (affordable - FEWEST_EPOCHS * val * VALIDATION_COST) / FEWEST_EPOCHS
        return EpochPlan(epochs=FEWEST_EPOCHS, images=min(max(int(images), 2), train))
    wanted = min(passes, MOST_EPOCHS, max(most_epochs, FEWEST_EPOCHS))
    repeats = max(round((affordable / wanted - val * VALIDATION_COST) / train), 1)
    epoch_cost = repeats * train + val * VALIDATION_COST
    return EpochPlan(epochs=max(int(affordable / epoch_cost), 1), images=repeats * train)


def finish_seconds(test: int, seconds_per_image: float) -> float:
    """How long what follows the last epoch takes: the evaluation of the test images, and the charts."""
    return _FINISH_SECONDS + _TEST_COST * VALIDATION_COST * test * seconds_per_image


def progress(epoch: float, plan: Sequence[tuple[int, int]]) -> float:
    """The share of a training that is done, 0 to 1, after so many epochs.

    Args:
        epoch: Epochs that are done, with the fraction of the present one.
        plan: Pairs of the epoch after which the number of epochs was decided, and that number, in order: the
            first is (0, epochs). Between them, the share grows evenly.
    """
    done, start, total = 0.0, *plan[0]
    for after, changed in plan[1:]:
        if epoch <= after:
            break
        done += (1 - done) * (after - start) / (total - start)
        start, total = after, changed
    if total <= start:
        return 1.0
    return min(done + (1 - done) * (epoch - start) / (total - start), 1.0)


def corrected_epochs(*, done: int, planned: int, epoch_seconds: float, seconds_left: float) -> int:
    """The number of epochs that end with the budget, after so many.

    Args:
        done: Epochs that are complete, at least one.
        planned: Number of epochs so far.
        epoch_seconds: Duration of an epoch with its validation.
        seconds_left: What is left of the budget, without the evaluation at the end.
    """
    left = planned - done
    fit = max(math.floor(seconds_left / epoch_seconds + _TOLERANCE), 0)
    if fit < left:
        return done + fit
    if fit > left * 1.1 and left and done < _EXTENDED_UNTIL * planned:
        return done + fit
    return planned


class TimeBudget(Callback):
    """Corrects the number of epochs after each one, so that the run ends with its budget.

    The learning rate follows (`progress`): it still reaches zero at the end.

    Args:
        config: The run's; its `epoch_plan` holds the first pair.
        ends: The time on `clock` at which training must have ended.
        change_plan: Hands a changed plan to the learning rate's schedule.
        record: Writes the configuration with a changed plan.
        say: Prints a line.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        *,
        ends: float,
        change_plan: Callable[[Sequence[tuple[int, int]]], None],
        record: Callable[[ResolvedConfig], None],
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.ends = ends
        self.change_plan = change_plan
        self.record = record
        self.say = say
        self._epoch_started = clock()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; what lies between two epochs counts with the later one."""
        if trainer.current_epoch == 0:
            self._epoch_started = clock()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the clock with the plan; the first process decides for all."""
        now = clock()
        done = trainer.current_epoch + 1
        epochs = corrected_epochs(
            done=done,
            planned=self.config.epochs,
            epoch_seconds=now - self._epoch_started,
            seconds_left=self.ends - now,
        )
        self._epoch_started = now
        epochs = trainer.strategy.broadcast(epochs)
        if epochs == self.config.epochs:
            return
        self.config = dataclasses.replace(
            self.config, epochs=epochs, epoch_plan=(*self.config.epoch_plan, (done, epochs))
        )
        self.change_plan(self.config.epoch_plan)
        trainer.fit_loop.max_epochs = epochs
        if trainer.is_global_zero:
            self.record(self.config)
            self.say(
                f"after epoch {done}: {epochs} epochs fit into the time, not {self.config.epoch_plan[-2][1]}"
            )


class Forecast(Callback):
    """Says when a run of a given number of epochs will have ended, by its first seconds.

    Args:
        config: The run's.
        val: Number of validation images.
        test: Number of test images.
        say: Prints a line.
    """

    def __init__(self, config: ResolvedConfig, *, val: int, test: int, say: Callable[[str], None]) -> None:
        self.config = config
        self.val = val
        self.test = test
        self.say = say
        self._began: float | None = None
        self._steps = 0
        self._said = False

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Speak once, some seconds after the first step, if there is something to wait for."""
        if self._said:
            return
        now = clock()
        if self._began is None:  # The first step is slower: what comes for the first time is prepared.
            self._began = now
            return
        self._steps += 1
        if now - self._began < _FORECAST_AFTER:
            return
        self._said = True
        per_step = (now - self._began) / self._steps
        epochs, images = self.config.epochs - trainer.current_epoch, self.config.epoch_images
        per_image = per_step / self.config.batch_size
        seconds = (epochs * (images + VALIDATION_COST * self.val)) * per_image
        seconds += finish_seconds(self.test, per_image) - (now - self._began)
        if trainer.is_global_zero and seconds > 2 * _FORECAST_AFTER:
            self.say(f"{1000 * per_step:.3g} ms a step; {ends_at(seconds)}")


def ends_at(seconds: float) -> str:
    """The time of day at which something ends that takes so many more seconds."""
    end = datetime.now().astimezone() + timedelta(seconds=seconds)
    return f"ends at {end:%H:%M:%S}, in {format_duration(seconds)}"
