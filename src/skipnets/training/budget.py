"""A training within a budget of time: how many epochs fit, and corrections while it runs.

What was decided is recorded in `run.yaml` (`epochs`, `epoch_images`, `epoch_plan`), so a resumed or repeated
run keeps its schedule whatever the clock says.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from skipnets.training.config import ResolvedConfig

# What a run's budget is measured with, in seconds; benchmarks put the processor's time in its place.
clock: Callable[[], float] = time.perf_counter

# What follows was measured on an AMD EPYC (Zen 4); on other devices the plan is corrected after each epoch.
# A validation image costs about a third of a training image: no gradient.
VALIDATION_COST = 1 / 3
# The share of a budget that validation may take; where it would take more, epochs are longer.
VALIDATION_SHARE = 0.1
FEWEST_EPOCHS, MOST_EPOCHS = 4, 100
# An epoch of so many passes is rounded to whole ones.
_WHOLE_PASSES = 5
# Loading the best model, drawing and writing, and how much slower than in validation a test image is.
_FINISH_SECONDS, _TEST_COST = 4.0, 1.5
# A test image takes at least the time to read it. On an H200, where computing takes none, 11 s followed the
# last epoch with 10,000 JPEG images of 32×32 pixels.
_TEST_READ_SECONDS = 5e-4
# From the plan to the first step of a run on a GPU: on an H200 3 to 4 s after the network's announcement, and
# up to as much before. On a CPU it is little beside an epoch.
GPU_START_SECONDS = 5.0
# The plan changes where so many epochs more or less fit, and by more than this share of those that are left.
_LEAST_CHANGE, _LEAST_SHARE = 2, 0.1
# The next epochs are expected to take the mean time of this many before them, or of so many seconds.
_RECENT, _RECENT_SECONDS = 5, 5.0
# What epochs took says something after so many seconds.
_LEAST_SECONDS = 2.0
# An epoch is given up only where it would overrun the budget by more than this share of itself.
_TOLERANCE = 0.15
# Epochs are added only before this share of the training is done: later the rate is already low.
_EXTENDED_UNTIL = 0.8


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """How many epochs of how many images fit into a budget.

    Attributes:
        epochs: Number of epochs.
        images: Training images of each: a whole number of passes, or the part of one that fits.
    """

    epochs: int
    images: int


def plan_epochs(
    train: int,
    val: int,
    *,
    seconds_per_image: float,
    seconds: float,
    batch_size: int,
    epoch_images: int | None = None,
) -> EpochPlan:
    """Divide a budget into epochs.

    An epoch is one pass over the training images where 4 to 100 of these fit; several passes where more fit,
    or where validation after each would take more than a tenth of the time; a part of one otherwise, but at
    least a batch, as a step on a few images hardly trains.

    Args:
        train: Number of training images.
        val: Number of validation images.
        seconds_per_image: Seconds that a training image takes.
        seconds: The budget, without the evaluation at the end.
        batch_size: Images of a step.
        epoch_images: Training images of an epoch, where that is given.
    """
    affordable = max(seconds / seconds_per_image, 1.0)  # training images, if there were no validation
    if epoch_images is not None:
        epoch_cost = epoch_images + val * VALIDATION_COST
        return EpochPlan(epochs=max(int(affordable / epoch_cost), 1), images=epoch_images)
    validation = val * VALIDATION_COST
    fewest, most = FEWEST_EPOCHS, float(MOST_EPOCHS)
    if validation and affordable > batch_size + validation:  # enough for one epoch, at least
        fewest = min(max(int(affordable / (2 * validation)), 1), FEWEST_EPOCHS)
        most = min(most, max(VALIDATION_SHARE * affordable / validation, fewest))
    passes = affordable / (train + validation)
    if passes < fewest:
        images = affordable / fewest - validation
        return EpochPlan(epochs=fewest, images=min(max(int(images), batch_size), train))
    if passes <= most:
        images = train
    else:
        images = int(affordable / most - validation)
        if most == MOST_EPOCHS:  # or a little less, of whole passes
            images = math.ceil(images / train - 0.01) * train
        elif images >= _WHOLE_PASSES * train:
            images = images // train * train
    return EpochPlan(epochs=max(int(affordable / (images + validation) + 1e-6), 1), images=images)


def finish_seconds(test: int, seconds_per_image: float, *, to_read: float = 0.0) -> float:
    """How long what follows the last epoch takes: the evaluation of the test images, and the charts.

    Args:
        test: Number of test images.
        seconds_per_image: Seconds that a training image takes.
        to_read: Seconds that reading an image takes, where that was measured.
    """
    computing = _TEST_COST * VALIDATION_COST * seconds_per_image
    return _FINISH_SECONDS + test * max(computing, to_read, _TEST_READ_SECONDS)


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
    if abs(fit - left) < (_LEAST_CHANGE if fit > 1 else 1) or abs(fit - left) <= _LEAST_SHARE * left:
        return planned
    if fit < left or (left and done < _EXTENDED_UNTIL * planned):
        return done + fit
    return planned


def recent_durations(durations: Sequence[float]) -> Sequence[float]:
    """The last five of the durations of epochs, or more where these took less than five seconds together."""
    count = _RECENT
    while count < len(durations) and sum(durations[-count:]) < _RECENT_SECONDS:
        count += 1
    return durations[-count:]


class TimeBudget(Callback):
    """Corrects the number of epochs after each one, so that the run ends with its budget.

    The learning rate follows (`schedule_plan.progress`): it still reaches zero at the end.

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
        self._durations: list[float] = []

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
        self._durations.append(now - self._epoch_started)
        self._epoch_started = now
        # The first epoch starts the workers, too: it counts where there is no other.
        recent = recent_durations(self._durations[1:] or self._durations)
        epochs = corrected_epochs(
            done=done,
            planned=self.config.epochs,
            epoch_seconds=statistics.fmean(recent),
            seconds_left=self.ends - now,
        )
        early = done == 1 or sum(self._durations) < _LEAST_SECONDS
        if early and epochs - done >= FEWEST_EPOCHS:
            epochs = self.config.epochs  # enough fit to wait for another one
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
                f"after epoch {done}: {epochs} epoch{'s fit' if epochs > 1 else ' fits'} into the time, not"
                f" {self.config.epoch_plan[-2][1]}"
            )
