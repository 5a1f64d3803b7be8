"""Training goes on from the step at which a checkpoint was written, to the same bits."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from tests.training.test_trainer import EVERYTHING, interrupt_at, result

from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.training import Run, TrainConfig, TrainingInterrupted, resume, train
from skipnets.training.checkpoints import (
    _generators,
    _restore_generators,
    dealt_out,
    newest_checkpoint,
    recount,
    shares_of,
    write_checkpoint,
)

MakeConfig = Callable[..., TrainConfig]
AT_EVERY_STEP = 1e-9


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The positions of the images of each training step, as they come."""
    from skipnets.training.task import ClassificationTask

    positions: list[tuple[int, ...]] = []
    original = ClassificationTask.training_step

    def training_step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        positions.append(tuple(batch[2].tolist()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    return positions


@pytest.mark.parametrize("step", [9, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_epoch_goes_on_at_its_step(
    step: int, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, ...]]
) -> None:
    config = tiny(checkpoint_minutes=AT_EVERY_STEP, epochs=2, **EVERYTHING)
    whole = train(dataclasses.replace(config, out=tmp_path / "whole"))
    expected = seen.copy()
    seen.clear()
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(config)
    # Gradients add up over two batches, so the last checkpoint is that of an even number of steps.
    before = seen.copy()
    assert len(before) == step + 1
    seen.clear()
    run = resume(config.out)
    done = step // 2 * 2
    assert before == expected[: step + 1]
    assert seen == expected[done:]
    assert result(run) == result(whole)
    assert run.rows[0].seconds > 0


@pytest.mark.slow
def test_without_checkpoints_within_epochs_an_epoch_begins_anew(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, ...]]
) -> None:
    config = tiny(checkpoint_minutes=0, epochs=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(config)
    before = seen.copy()
    seen.clear()
    resume(config.out)
    assert seen[:4] == before


class TestDamagedCheckpoints:
    def interrupted(self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Run:
        config = tiny(checkpoint_minutes=AT_EVERY_STEP, epochs=1)
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4, KeyboardInterrupt())
            with pytest.raises(TrainingInterrupted):
                train(config)
        return Run(config.out)

    @pytest.mark.parametrize("keep", [0, 1000, -1000])
    def test_the_newest_that_is_whole(self, keep: int, tmp_path: Path) -> None:
        run = Run(tmp_path)
        assert newest_checkpoint(run) is None
        run.checkpoint.parent.mkdir()
        for number, path in enumerate((run.previous_checkpoint, run.checkpoint)):
            torch.save({"weights": torch.full((2000,), number)}, path)
        assert newest_checkpoint(run) == run.checkpoint
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:keep])
        assert newest_checkpoint(run) == run.previous_checkpoint
        run.checkpoint.unlink()  # killed between the two renamings
        assert newest_checkpoint(run) == run.previous_checkpoint
        run.previous_checkpoint.write_bytes(b"")
        with pytest.raises(UserError, match=r"^resume: no checkpoint in .* can be read"):
            newest_checkpoint(run)

    @pytest.mark.slow
    @pytest.mark.parametrize("keep", [0, 1000, -1000])
    def test_the_one_before_is_taken(
        self, keep: int, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = self.interrupted(tiny, monkeypatch)
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:keep])
        assert newest_checkpoint(run) == run.previous_checkpoint
        whole = train(tiny(epochs=1, out=tmp_path / "whole"))
        assert result(resume(run.folder)) == result(whole)

    @pytest.mark.slow
    def test_none_is_left(self, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        run = self.interrupted(tiny, monkeypatch)
        for path in (run.checkpoint, run.previous_checkpoint):
            path.write_bytes(b"")
        with pytest.raises(UserError, match=r"^resume: no checkpoint in .* can be read"):
            resume(run.folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="the disk is full or fails"):
        write_checkpoint({"weights": torch.zeros(10_000)}, Path("/dev/full"))


def test_generators_go_on() -> None:
    states = _generators()
    first = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())  # noqa: NPY002
    _restore_generators(states)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == first  # noqa: NPY002


def test_more_processes_than_the_run_was_started_with_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"callbacks": {"Other": {}, "StepCheckpoints": {"processes": 4, "within_epoch": []}}}, path)
    assert [shares_of(path, processes) for processes in (1, 2, 4)] == [4, 4, 4]
    for processes in (3, 8):
        with pytest.raises(UserError, match=rf"^devices={processes}: must divide 4, the number of processes"):
            shares_of(path, processes)
    assert shares_of(None, 3) == 3


@pytest.mark.parametrize("behind", [0, 1], ids=["at the end", "at the end of a batch"])
@pytest.mark.parametrize(("before", "now"), [(1, 4), (4, 1), (2, 4)])
def test_batches_are_counted_as_so_many_processes_do(behind: int, before: int, now: int) -> None:
    def progress(shares: int) -> dict[str, Any]:
        def counts(batches: int) -> dict[str, int]:
            count = batches * shares
            return {"ready": count, "started": count, "processed": count, "completed": count - behind}

        return {"total": counts(17), "current": counts(3), "is_last_batch": False}

    counted = progress(before)
    recount(counted, before=before, now=now)
    assert counted == progress(now)


def test_processes_out_of_step_are_refused() -> None:
    loader = {"read": 6, "owed": 0, "left": 0, "failures": {}}
    measured = {"sums": torch.tensor([3.0, 2.0]), "images": 8, "gradient_norms": [1.0]}
    state = {"loader": loader, "generators": {}, "measured": measured}
    [alone] = dealt_out([state, state], 1)
    assert alone["loader"] == {**loader, "read": 12}
    assert alone["measured"]["sums"].tolist() == [6.0, 4.0]
    assert alone["measured"]["images"] == 16
    first, second = (each["measured"] for each in dealt_out([alone], 2))
    assert (first["images"], second["images"], second["sums"]) == (16, 0, None)
    for change in ({"read": 7}, {"owed": 1}, {"left": 1}):
        other = {**state, "loader": {**loader, **change}}
        with pytest.raises(UserError, match=r"^devices=1: must be 2 up to the end of this epoch"):
            dealt_out([state, other], 1)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in forked processes, which a run refuses: they have a test's patches, and one thread each."""
    monkeypatch.setattr(_MultiProcessingLauncher, "is_interactive_compatible", False)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the patches reach the processes by a fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("forked")
def test_processes_that_train_together_go_on_together(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"devices": 2, "strategy": "ddp_fork", "batch_size": 4, "epochs": 1}
    monkeypatch.setattr("skipnets.training.checkpoints._STEPS_BETWEEN_AGREEMENTS", 1)
    config = tiny(
        checkpoint_minutes=AT_EVERY_STEP, **EVERYTHING | {"accumulate": 1, "imbalance": "none"} | options
    )
    whole = train(dataclasses.replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, RuntimeError("the power is gone"))
        with pytest.raises(Exception, match="the power is gone"):
            train(config)
    assert Run(config.out).checkpoint.exists()
    assert result(resume(config.out)) == result(whole)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the patches reach the processes by a fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("step", [6, 15])
def test_one_process_goes_on_where_two_were(
    step: int, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in every step, and so the same weights but for the order of sums."""
    options = {"devices": 2, "strategy": "ddp_fork", "batch_size": 4, "epochs": 2, "lr": 0.01, "ema": 0}
    monkeypatch.setattr("skipnets.training.checkpoints._STEPS_BETWEEN_AGREEMENTS", 1)
    config = tiny(checkpoint_minutes=AT_EVERY_STEP, **options | {"augmentation": "trivial"})
    whole = train(dataclasses.replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, RuntimeError("the power is gone"))
        with pytest.raises(Exception, match="the power is gone"):
            train(config)
    run = resume(config.out, devices=1)
    for ours, theirs in zip(run.rows, whole.rows, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.lr == theirs.lr
    parts = [torch.load(each.checkpoint, weights_only=True) for each in (run, whole)]
    steps = parts[0]["global_step"]
    assert parts[1]["global_step"] == steps == 22
    for name, parameter in parts[0]["state_dict"].items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(parameter, parts[1]["state_dict"][name], rtol=1e-3, atol=1e-5)
    # And back, for one more epoch, with both.
    longer = resume(config.out, devices=2, epochs=3)
    assert len(longer.rows) == 3
    assert torch.load(longer.checkpoint, weights_only=True)["global_step"] == steps * 3 // 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the data loaders of the processes")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("ema", [0, 0.9])
def test_two_processes_validate_the_model_that_is_saved_on_every_image_once(
    ema: float, tiny: MakeConfig
) -> None:
    """Of nine images one process has two batches and the other one; their batch norms saw other images."""
    options = {"devices": 2, "strategy": "ddp_fork", "batch_size": 4, "epochs": 2, "ema": ema, "lr": 0.1}
    run = train(tiny(fractions=(0.7, 0.075, 0.225), **options))
    alone = evaluate(str(run.model), split="val").to_dict()
    row = run.rows[run.best_epoch - 1]
    assert alone["images"] == 9
    assert row.val_accuracy == pytest.approx(alone["accuracy"], abs=1e-6)
    assert row.val_loss == pytest.approx(alone["nll"], rel=1e-5)
