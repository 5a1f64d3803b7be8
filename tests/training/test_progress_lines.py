from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skipnets.training import TrainConfig, progress_lines, train
from skipnets.training.budget import finish_seconds
from skipnets.training.progress_lines import ExpectedEnd, ProgressLines, end_text, progress_line


class Clock:
    """Stands for `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_lines, "time", SimpleNamespace(perf_counter=clock))
    return clock


class Loop:
    """Calls callbacks as a trainer does, with steps and validations of given durations."""

    def __init__(self, clock: Clock, *callbacks: Any, epochs: int, steps: int, val_batches: int = 3) -> None:
        self.clock = clock
        self.callbacks = callbacks
        self.trainer: Any = SimpleNamespace(
            max_epochs=epochs,
            current_epoch=0,
            num_training_batches=steps,
            num_val_batches=[val_batches],
            is_global_zero=True,
        )
        self.call("on_train_start")
        self.call("on_train_epoch_start")

    def call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.trainer, cast("Any", None), *arguments)

    def epoch(self, step: float, validation: float, first: float | None = None) -> None:
        for batch in range(self.trainer.num_training_batches):
            self.clock.now += first if first is not None and batch == 0 else step
            self.call("on_train_batch_end", {"loss": 1.5}, None, batch)
        self.call("on_validation_start")
        self.clock.now += validation
        self.call("on_validation_end")
        self.call("on_train_epoch_end")
        self.trainer.current_epoch += 1
        self.call("on_train_epoch_start")


def test_the_expected_end_is_that_of_the_steps_and_validations_that_are_left(clock: Clock) -> None:
    end = ExpectedEnd(test=0, batch_size=8)
    loop = Loop(clock, end, epochs=5, steps=10)
    assert end.seconds(loop.trainer) is None
    loop.epoch(step=2.0, validation=6.0, first=30.0)  # the first step, which prepares much, tells nothing
    assert end.seconds_per_step == 2.0
    finish = finish_seconds(0, 2.0 / 8)
    assert end.seconds(loop.trainer) == 4 * (10 * 2.0 + 6.0) + finish
    loop.trainer.max_epochs = 3  # as a budget of time may decide
    assert end.seconds(loop.trainer) == 2 * (10 * 2.0 + 6.0) + finish


def test_lines_come_soon_and_then_seldom(clock: Clock) -> None:
    lines: list[str] = []
    end = ExpectedEnd(test=0, batch_size=8)
    loop = Loop(clock, end, ProgressLines(end, lines.append), epochs=2, steps=600)
    loop.epoch(step=0.5, validation=1.0)
    at = [int(line.split("step ")[1].split("/")[0]) * 0.5 for line in lines]
    assert at == [2, 17, 47, 107, 227]
    loop.epoch(step=0.5, validation=1.0)
    assert lines[5].startswith("epoch 2/2  step 240/600  loss 1.5000  0.5 s a step  ends at ")


def test_epochs_of_a_moment_get_no_lines_between_them(clock: Clock) -> None:
    lines: list[str] = []
    end = ExpectedEnd(test=0, batch_size=8)
    loop = Loop(clock, end, ProgressLines(end, lines.append), epochs=9, steps=10)
    for _ in range(9):
        loop.epoch(step=0.1, validation=0.1)
    assert lines == []


def test_epochs_are_aligned() -> None:
    line = progress_line(
        epoch=3, epochs=120, step=4, steps=23, loss=2.25, seconds_per_step=0.123, remaining=60
    )
    assert line.startswith("epoch   3/120  step 4/23  loss 2.2500  0.12 s a step  ends at ")


def test_a_log_file_gets_a_line_within_the_first_epoch(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_lines, "_FIRST", 0.0)
    train(tiny(epochs=1))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/1")]
    assert lines[0].startswith("epoch 1/1  step 2/6  loss ")
    assert lines[-1].startswith("epoch 1/1  train loss ")


def test_an_end_that_is_far_away_has_no_time_of_day() -> None:
    assert end_text(1e30) == "ends in more than a year"
    assert end_text(86400.0).endswith(", in 24 h")
