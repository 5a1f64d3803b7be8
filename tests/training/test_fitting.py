"""Lightning's trainer as a run needs it: its precision, its processes, PyTorch's settings meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skipnets.training import TrainConfig, train
from skipnets.training.fitting import on_gpu, processes

_LIKELY = {("32-true", "sgd", 1.0, 2), ("bf16-mixed", "adamw", 1.0, 1)}


@pytest.mark.parametrize(
    ("precision", "optimizer", "clip", "accumulate"),
    [
        pytest.param(*case, marks=[] if case in _LIKELY else [pytest.mark.slow])
        for case in itertools.product(
            ("32-true", "bf16-mixed", "64-true"), ("sgd", "adamw"), (0.0, 1.0), (1, 2)
        )
    ],
)
def test_every_precision_trains(
    tiny: Callable[..., TrainConfig], precision: Any, optimizer: Any, clip: float, accumulate: int
) -> None:
    """Lightning refuses to clip the gradients of fused optimizers, which are ours."""
    changes: dict[str, Any] = {"clip": clip, "accumulate": accumulate, "lr": 0.01, "warmup": 0.0}
    run = train(tiny(precision=precision, optimizer=optimizer, epochs=2, **changes))
    assert run.config.precision == precision
    first, last = run.rows[0].train_loss, run.rows[-1].train_loss
    assert last < first


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [("32-true", False), ("64-true", False), ("bf16-mixed", True), ("16-mixed", True)],
)
def test_float32_by_name_turns_tf32_off(precision: str, allowed: bool) -> None:
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    with on_gpu(precision):
        assert (products.allow_tf32, convolutions.allow_tf32) == (allowed, allowed)
    assert (products.allow_tf32, convolutions.allow_tf32) == before


def test_torchrun_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(devices=1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes(config) == {"devices": 1}  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes(config) == {"devices": 2, "num_nodes": 4}  # type: ignore[arg-type]
