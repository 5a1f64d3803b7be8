from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import skipnets
from skipnets.errors import UserError
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import (
    Run,
    TrainConfig,
    TrainingInterrupted,
    budget,
    choice,
    read_config,
    resume,
    train,
    trainer,
)
from skipnets.training.config import config_to_yaml
from skipnets.training.divergence import DivergenceError
from skipnets.training.task import ClassificationTask

MakeConfig = Callable[..., TrainConfig]


# Everything in a run that has a state or draws random numbers, at once.
EVERYTHING = {
    "augmentation": "trivial",
    "mixup": 0.2,
    "cutmix": 1.0,
    "ema": 0.9,
    "imbalance": "balanced-sampling",
    "patience": 2,
    "optimizer": "adamw",
    "lr": 0.01,
    "accumulate": 2,
    "model_options": {"block_config": [2, 2], "growth_rate": 4, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
}


def result(run: Run) -> dict[str, Any]:
    """What a run came to, without what the clock or the place decides."""
    measured = ("seconds", "validation_seconds", "images_per_second", "processor_seconds", "memory")
    timeless: dict[str, Any] = dict.fromkeys(measured, 0.0)
    evaluation = json.loads(run.evaluation.read_text())
    return {
        "rows": [dataclasses.replace(row, **timeless) for row in run.rows],
        "best": run.best_epoch,
        "weights": {name: array.tobytes() for name, array in read_model_file(run.model).tensors().items()},
        "accuracy": evaluation["accuracy"],
        "predictions": sorted(path.name for path in run.folder.glob("predictions.*")),
    }


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise in the middle of the training step of that number."""
    original = ClassificationTask.training_step
    steps = iter(range(10**9))

    def training_step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        if next(steps) == step:
            raise error
        return loss

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def test_a_run_folder_holds_what_the_design_says(tiny: MakeConfig) -> None:
    config = tiny(epochs=8, recipe="scratch")
    run = train(config)
    assert {path.name for path in run.folder.iterdir()} == {
        "run.yaml",
        "environment.json",
        "splits.csv",
        "model.safetensors",
        "checkpoints",
        "metrics.csv",
        "tensorboard",
        "batches.png",
        "curves.png",
        "confusion.png",
        "evaluation.json",
        "predictions.parquet",
    }
    assert {path.name for path in run.checkpoint.parent.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert [row.epoch for row in run.rows] == list(range(1, 9))
    assert all(row.seconds > 0 and row.validation_seconds > 0 for row in run.rows)
    best = max(row.val_accuracy for row in run.rows)
    images = run.splits.read_text().count(",val,")
    least = best - max((best * (1 - best) / images) ** 0.5, 1 / images) - 1e-6
    assert run.best_epoch == max(row.epoch for row in run.rows if row.val_accuracy >= least)
    assert best > 0.9

    classifier = skipnets.load(run.folder)
    assert classifier.classes == ("0", "1", "2")
    assert classifier.preprocessing.size == (8, 8)
    assert classifier.preprocessing.channels == 1
    about = classifier.provenance
    assert about["images"] == {"train": 84, "val": 18, "test": 18}
    assert about["scores"]["val_accuracy"] == run.rows[run.best_epoch - 1].val_accuracy
    assert about["scores"]["test_accuracy"] == run.scores["accuracy"] > 0.8


def test_the_resolved_configuration_repeats_the_run(tiny: MakeConfig, tmp_path: Path) -> None:
    run = train(tiny(recipe="scratch"))
    resolved = yaml.safe_load(run.config_file.read_text())
    optional = {"weights", "folds", "splits", "root", "page", "group_pattern", "time"}
    optional |= {"components", "window", "percentiles", "max_pixels", "shown_channels", "dims"}
    optional |= {"fractions", "target_mean", "target_std"}
    optional |= {"loss", "threshold", "teacher"}  # of several labels an image, and of another network
    optional |= {f"{role}_column" for role in ("path", "label", "split", "group")}
    assert {field.name for field in dataclasses.fields(TrainConfig)} - set(resolved) == optional
    again = train(read_config(run.config_file, out=tmp_path / "again"))
    assert result(again) == result(run)
    assert again.config == dataclasses.replace(run.config, out=again.folder)


def test_another_seed_is_another_run(tiny: MakeConfig, tmp_path: Path) -> None:
    first, second = (train(tiny(out=tmp_path / str(seed), seed=seed, epochs=1)) for seed in (0, 1))
    assert result(first)["weights"] != result(second)["weights"]
    assert first.splits.read_text() != second.splits.read_text()


@pytest.mark.parametrize("step", [0, 9])
def test_ctrl_c_and_resume_come_to_the_same_result(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    whole = train(tiny(out=tmp_path / "whole", epochs=4, **EVERYTHING))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted) as interrupted:
            train(tiny(epochs=4, **EVERYTHING))
    run = Run(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"skipnets train --resume {run.folder}" in str(interrupted.value)
    if step:
        assert str(interrupted.value).startswith(
            f"interrupted in epoch 2; the best model so far (epoch 1) is {run.model};"
        )
        assert skipnets.load(run.folder).predict([np.zeros((8, 8), np.uint8)])[0].error is None
    else:
        assert str(interrupted.value).startswith("interrupted in epoch 1; start it again")
    assert result(resume(run.folder)) == result(whole)
    with pytest.raises(UserError, match="is complete"):
        resume(run.folder)


def test_workers_change_nothing_even_after_a_resume(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(out=tmp_path / "whole", augmentation="trivial"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(tiny(augmentation="trivial", workers=2))
    assert result(resume(tmp_path / "run")) == result(whole)


def test_a_killed_process_can_be_resumed(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(**EVERYTHING)
    whole = train(dataclasses.replace(config, out=tmp_path / "whole"))
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    script = """
import os, signal, sys
from skipnets.training import read_config, train
from skipnets.training.task import ClassificationTask
original = ClassificationTask.validation_step
def validation_step(self, batch, batch_idx):
    if self.trainer.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, batch_idx)
ClassificationTask.validation_step = validation_step
train(read_config(sys.argv[1]))
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "config.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(Run(config.out).rows) == 1
    assert result(resume(config.out)) == result(whole)


def test_a_run_that_stopped_early_is_not_trained_further(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = {"lr": 1e-9, "patience": 1, "epochs": 9, "ema": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", _power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(**hopeless))
    run = Run(tmp_path / "run")
    assert len(run.rows) < 9
    before = run.rows
    assert resume(run.folder).rows == before
    assert run.evaluation.exists()


def _power_cut(*_: object) -> None:
    raise RuntimeError("power cut")


def test_one_line_an_epoch_on_standard_error(tiny: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(epochs=2))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    *table, network, length, recipe, _, first, second = lines
    assert table[0].startswith("data      ")
    assert table[-1].split() == ["2", "2", "28", "6", "6", "40"]
    assert re.fullmatch(r"network      densenet_bc40_k12, [\d,]+ parameters, 8×8 gray", network)
    assert length == "training     2 epochs of 6 steps of 16 images"
    assert recipe.startswith("recipe auto  sgd, rate 0.07")
    assert first.startswith("epoch 1/2  train loss ")
    assert first.endswith(" s  best")
    assert second.startswith("epoch 2/2  train loss ")


def test_a_time_decides_the_number_of_epochs_and_is_kept(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but for the training steps, of which each takes a second."""
    now = [0.0]
    monkeypatch.setattr(budget, "clock", lambda: now[0])
    monkeypatch.setattr(choice, "seconds_per_image", lambda *_, **__: 0.5 / 16)
    step = ClassificationTask.training_step

    def slow_step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        now[0] += 1.0
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", slow_step)
    # Of 60 s, 56 are for training: twice 6 s, an epoch by the probe, and by the clock 6.
    timed = {"epochs": None, "time": "60s", "model_options": {"block_config": [1], "growth_rate": 2}}
    run = train(tiny(out=tmp_path / "whole", **timed))
    assert run.config.time == "60s"
    assert run.config.epoch_plan[0][1] > run.config.epochs == len(run.rows) == 9
    assert run.rows[-1].lr == 0
    assert 50 < now[0] <= 60
    settings = yaml.safe_load(run.config_file.read_text())
    assert settings["epoch_plan"][-1][1] == 9

    def stop_the_clock() -> float:
        raise AssertionError("a repeated run looks at its plan, not at the clock")

    with monkeypatch.context() as patch:
        patch.setattr(budget, "corrected_epochs", stop_the_clock)
        again = train(read_config(run.config_file, out=tmp_path / "again"))
    assert result(again) == result(run)

    now[0] = 0.0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(tiny(**timed))
    planned = Run(tmp_path / "run").config.epochs
    now[0] = 1e6
    resumed = resume(tmp_path / "run")
    assert len(resumed.rows) == planned
    assert resumed.rows[-1].lr == 0


@pytest.mark.parametrize("folds", [None, 2])
def test_what_is_noted_of_the_images_is_said_once(
    folds: int | None, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skipnets.training.prepare._UNEQUAL", 1)
    monkeypatch.setattr("skipnets.training.trainer._begin", lambda run, *_: run)
    monkeypatch.setattr("skipnets.training.folds._train_missing", lambda run, *_, **__: run)
    train(tiny(epochs=1, folds=folds))
    assert " ".join(capsys.readouterr().err.split()).count("accuracy says little of rare classes") == 1


def test_a_last_batch_of_one_does_not_break_batch_norm(tiny: MakeConfig) -> None:
    """Of 84 images, batches of 83 leave one over. The last map is a single pixel."""
    options = {"stem": "imagenet", "shortcut": "projection"}
    config = tiny(batch_size=83, epochs=1, model="resnet20", model_options=options)
    assert train(config).rows


def test_divergence_is_a_user_error(tiny: MakeConfig) -> None:
    with pytest.raises(
        DivergenceError, match=r"^lr: training diverged in epoch 1, step \d .*, with lr=1e\+30; a tenth of it"
    ):
        train(
            tiny(
                lr=1e30,
                clip=0.0,
                ema=0.0,
                warmup=0.0,
                epochs=1,
                model_options={"norm": None},
                model="resnet20",
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "densenet_bc40_k13"},
            r"model=densenet_bc40_k13: must be a model's name; did you mean densenet_bc40_k12",
        ),
        (
            {"model_options": {"growthrate": 3}},
            r"growthrate: must be a field of densenet_bc40_k12; did you mean growth_rate",
        ),
        ({"model_options": {"num_classes": 3}}, r"^model_options: num_classes follows from the data"),
        ({"augmentation": "trivail"}, r"augmentation='trivail'.*did you mean trivial"),
        ({"size": 3, "model_options": {}}, r"must give images of at least 4×4 for densenet_bc40_k12"),
        ({"fractions": (0.8, 0, 0.2)}, r"^fractions: there are no images to choose the best epoch on"),
        ({"fractions": (0.8, 0.1, 0.2)}, r"fractions"),
        ({"batch_size": 1}, r"^batch_size=1: must be at least 2 for the batch norms of densenet_bc40_k12"),
        ({"freeze": 9}, r"^freeze=9: must be at most 3, the stages of densenet_bc40_k12"),
        ({"mean": (0.1, 0.2, 0.3)}, r"mean=.*must have 1 values"),
        ({"data": "digit"}, r"^digit: no such folder.*did you mean digits"),
        ({"accelerator": "toaster"}, "accelerator='toaster': must be one of auto, cpu, gpu, mps$"),
        ({"devices": "many"}, "devices='many': must be a number of devices"),
        ({"strategy": "ddp_fork", "devices": 2}, "devices=2: would be forked processes here"),
        ({"strategy": "dpp"}, "strategy='dpp': must be one of auto, ddp, ddp_spawn; did you mean ddp"),
        (
            {"model": "resnet20", "model_options": {}, "block_execution": "linear-recompute"},
            r"^block_execution=\"linear-recompute\": must be auto, plain or linear for resnet20",
        ),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        train(tiny(**changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_told_before_the_images_are_read(
    accelerator: str, tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^accelerator='{accelerator}': not available on this machine"):
        train(tiny(accelerator=accelerator, data="no-such-folder"))


def test_an_output_folder_with_a_run_is_left_alone(tiny: MakeConfig) -> None:
    run = train(tiny(epochs=1))
    before = run.model.read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(tiny(epochs=1))
    assert run.model.read_bytes() == before


def test_every_process_needs_a_validation_image(tiny: MakeConfig) -> None:
    config = tiny(devices=19)  # more than 18
    with pytest.raises(
        UserError, match=r"^devices=19: must be at most 18, the number of validation images, "
    ):
        train(config)
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp"])
def test_two_processes_count_every_image_once(tiny: MakeConfig, tmp_path: Path, strategy: str) -> None:
    config = tiny(devices=2, strategy=strategy, epochs=2, fractions=(0.7, 0.175, 0.125))
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    script = "import sys\nfrom skipnets.training import read_config, train\n"
    script += "if __name__ == '__main__':\n    print(len(train(read_config(sys.argv[1])).rows))\n"
    (tmp_path / "main.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "config.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    run = Run(config.out)
    assert [row.epoch for row in run.rows] == [1, 2]
    # 21 validation images, 11 and 10: an accuracy is a multiple of 1/21 only if each counted once.
    for row in run.rows:
        assert row.val_accuracy * 21 == pytest.approx(round(row.val_accuracy * 21), abs=1e-4)
    assert run.scores["accuracy"] >= 0


@pytest.mark.parametrize(
    ("workers", "fails"),
    [
        (1, True),
        *(
            pytest.param(workers, fails, marks=pytest.mark.slow)
            for workers, fails in [(0, False), (0, True), (1, False), (8, False), (8, True)]
        ),
    ],
)
def test_no_worker_process_outlives_the_run(
    tiny: MakeConfig, tmp_path: Path, workers: int, fails: bool
) -> None:
    """At exit, PyTorch would wait five seconds for each."""
    config = tiny(epochs=1, augmentation="trivial", workers=workers)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    script = """
import multiprocessing, sys
from skipnets.training import train
from skipnets.training.config import read_config
from skipnets.training.task import ClassificationTask

if sys.argv[2] == "True":
    def training_step(self, batch, index):
        raise RuntimeError("the first step fails")
    ClassificationTask.training_step = training_step
try:
    train(read_config(sys.argv[1]))
finally:
    print(len(multiprocessing.active_children()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(fails)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == fails, done.stderr
    assert ("the first step fails" in done.stderr) == fails
    assert done.stdout.splitlines()[-1] == "0"
