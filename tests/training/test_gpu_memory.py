"""A batch that does not fit into the GPU's memory: one line says what would, and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.training.test_trainer import interrupt_at

from skipnets.errors import UserError
from skipnets.training import Run, TrainConfig, gpu_memory, resume, train


@pytest.mark.parametrize(
    ("changes", "gpu_bytes", "step", "words"),
    [
        (
            {},
            1 << 40,
            0,
            ["--batch-size 8 --accumulate 2 or --block-execution linear-recompute, which needs"],
        ),
        ({"accumulate": 3}, 1 << 40, 0, ["--batch-size 8 --accumulate 6 or"]),
        ({"block_execution": "linear-recompute"}, 1 << 40, 0, ["--batch-size 8 --accumulate 2$"]),
        ({"model": "resnet20", "model_options": {}}, 1 << 40, 0, ["--batch-size 8 --accumulate 2$"]),
        ({"block_execution": "plain"}, 600_000, 0, ["--batch-size 4 --accumulate 4 or"]),
        (
            {},
            1 << 10,
            8,
            ["--batch-size 1 --accumulate 16 or", r"; the best model so far \(epoch 1\) is .*run"],
        ),
    ],
)
def test_out_of_memory_says_what_would_fit_and_loses_nothing(
    tiny: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    gpu_bytes: int,
    step: int,
    words: list[str],
) -> None:
    monkeypatch.setattr(gpu_memory, "_gpu_bytes", lambda: gpu_bytes)
    with monkeypatch.context() as patch:
        interrupt_at(
            patch, step, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        )
        with pytest.raises(UserError, match=r"^batch_size=16: does not fit into the GPU's memory") as caught:
            train(tiny(**changes))
    for wanted in words:
        assert re.search(wanted, str(caught.value))
    assert "\n" not in str(caught.value)
    run = Run(tiny().out)
    assert len(run.rows) == step // 6
    # The memory was another process's: it goes on.
    assert len(resume(run.folder).rows) == 3
