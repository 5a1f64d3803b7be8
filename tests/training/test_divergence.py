from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from skipnets import cli
from skipnets.training import Run, TrainConfig, train
from skipnets.training.divergence import Divergence, DivergenceError, average_note
from skipnets.training.task import ClassificationTask

MakeConfig = Callable[..., TrainConfig]


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Make the loss of the training step of that number something else."""
    original = ClassificationTask.training_step
    steps = iter(range(10**9))

    def training_step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        return loss * 0 + value if next(steps) == step else loss

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


@pytest.mark.parametrize(
    ("value", "words"), [(torch.nan, "not finite"), (torch.inf, "not finite"), (2e4, "2e+04")]
)
def test_a_diverged_training_ends_in_that_step_and_names_what_is_left(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, value: float, words: str
) -> None:
    spoil_loss(monkeypatch, 8, value)
    config = tiny(warmup=0.0, clip=0.0, lr=0.05)
    with pytest.raises(DivergenceError) as caught:
        train(config)
    text = str(caught.value)
    assert text.startswith(f"lr: training diverged in epoch 2, step 3 (the loss is {words}), with lr=0.05; ")
    assert "a tenth of it may be right, or clip=5" in text
    assert "or warmup=1" in text
    assert text.endswith(f"the best model so far (epoch 1) is {config.out / 'model.safetensors'}")
    assert "\n" not in text


def test_the_first_step_is_not_the_rate_s_fault(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, 0, torch.nan)
    with pytest.raises(
        DivergenceError, match=r"^loss: is not finite in the first step, before any weight has"
    ):
        train(tiny())


def test_the_command_ends_with_status_1_and_one_line(
    tiny: MakeConfig,
    digits_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    spoil_loss(monkeypatch, 1, torch.nan)
    small = ["--model", "densenet_bc40_k12", "--model-options.block-config", "[2, 2]", "--workers", "0"]
    options = [*small, "--epochs", "1", "--accelerator", "cpu", "--clip", "0", "--out", str(tmp_path / "run")]
    assert cli.main(["train", str(digits_folder), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("skipnets: --lr: training diverged in epoch 1, step 2 (the loss is not finite)")
    assert "--clip=5" in last


@pytest.mark.parametrize(("steps", "ends"), [(20, 20), (70, 50)])
def test_several_processes_look_every_50_steps_and_at_the_end_of_an_epoch(
    tmp_path: Path, steps: int, ends: int
) -> None:
    trainer = Mock(world_size=2, current_epoch=0, is_last_batch=False)
    trainer.strategy.reduce = lambda worst, reduce_op: worst
    config = Mock(lr=0.1, clip=0, warmup=0, precision="32-true")
    task = Mock(spec=ClassificationTask, config=config)
    callback = Divergence(Run(tmp_path))

    def train_epoch() -> None:
        for step in range(steps):
            trainer.is_last_batch = step == steps - 1
            loss = torch.tensor(2e4 if step == 3 else 1.0)
            callback.on_train_batch_end(trainer, task, {"loss": loss}, None, step)

    with pytest.raises(DivergenceError, match=rf"epoch 1, step {ends} \(the loss is 2e\+04\)"):
        train_epoch()


@pytest.mark.parametrize(
    ("val_loss", "train_loss", "noted"), [(47.0, 1.2, True), (2.5, 0.2, False), (9.0, 8.0, False)]
)
def test_an_average_that_is_far_behind_is_noted(val_loss: float, train_loss: float, noted: bool) -> None:
    note = average_note(0.999, val_loss=val_loss, train_loss=train_loss, guessing=math.log(10))
    assert (note is not None) == noted
    if note is not None:
        assert "ema=0.999" in note
        assert "validation loss 47" in note


def test_the_note_on_the_average_comes_once(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skipnets.training.callbacks.average_note", lambda *_, **__: "far behind")
    train(tiny(epochs=2, ema=0.9))
    assert capsys.readouterr().err.splitlines().count("far behind") == 1
