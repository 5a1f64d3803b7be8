from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.helpers.rows import make_row

from skipnets.training import TrainConfig, train
from skipnets.training import callbacks as callbacks_module
from skipnets.training.callbacks import Averaging, LiveCurves, epoch_line, seed_everything
from skipnets.training.run import Row

MakeConfig = Callable[..., TrainConfig]


def test_an_epochs_line() -> None:
    line = epoch_line(make_row(3, accuracy=0.5, loss=2.25), 120, kept=True)
    assert line == "epoch   3/120  train loss 1.0000  val loss 2.2500  val accuracy 50.00%  12.3 s  best"


def test_seeds_differ_by_epoch_and_device() -> None:
    def draw(*position: int) -> tuple[float, float]:
        seed_everything(3, *position)
        return torch.rand(()).item(), float(np.random.rand())  # noqa: NPY002

    assert draw(1, 0) == draw(1, 0)
    assert len({draw(1, 0), draw(2, 0), draw(1, 1)}) == 3


def test_averaged_weights_equal_their_closed_form(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step n: average += (1 − min(decay, (1 + n) / (10 + n))) · (weights − average)."""
    followed: list[torch.Tensor] = []
    averages: list[torch.Tensor] = []
    original = Averaging.on_train_batch_end

    def on_train_batch_end(self: Averaging, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        followed.append(args[1].model.get_classifier().weight.detach().double().clone())
        averages.append(self.model.get_classifier().weight.detach().double().clone())

    monkeypatch.setattr(Averaging, "on_train_batch_end", on_train_batch_end)
    train(tiny(ema=0.3, epochs=1))
    expected = followed[0]
    for step in range(1, len(followed)):
        expected = expected + (1 - min(0.3, (1 + step) / (10 + step))) * (followed[step] - expected)
    assert len(followed) == 6
    torch.testing.assert_close(averages[-1], expected, rtol=1e-5, atol=1e-6)


def test_curves_are_drawn_for_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    drawn: list[tuple[float, int, int]] = []

    def draw(rows: list[Row], best_epoch: int) -> None:
        drawn.append((now[0], len(rows), best_epoch))
        now[0] += 2.0

    monkeypatch.setattr(callbacks_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    rows: list[Row] = []
    live = LiveCurves(cast("Any", SimpleNamespace(rows=rows, best=lambda: rows[-1] if rows else None)), draw)
    trainer = cast("Any", SimpleNamespace(is_global_zero=True))
    live.on_train_epoch_end(trainer, cast("Any", None))
    for epoch in range(1, 51):
        now[0] += 12.0
        rows.append(make_row(epoch, accuracy=0.01 * epoch))
        live.on_train_epoch_end(trainer, cast("Any", None))
    # First after a hundred seconds, then after a hundred times the two that drawing takes.
    assert drawn == [(1108.0, 9, 9), (1314.0, 26, 26), (1520.0, 43, 43)]
