"""Tuning: trials, what they may see, and going on."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.metrics import average_precision_score, mean_absolute_error
from tests.helpers.disks import TARGETS, write_disks
from tests.helpers.labels import write_tiles
from tests.helpers.own_networks import TinyNet

from skipnets.classifier import load
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, RegressionEvaluation, evaluate
from skipnets.models import create_model
from skipnets.report.tuning import write_tuning_report
from skipnets.training import (
    TrainConfig,
    Tuning,
    choice,
    gpu_memory,
    resume,
    resume_tuning,
    train,
    trainer,
    tune,
)
from skipnets.training import prepare as prepare_module
from skipnets.training.config import read_config
from skipnets.training.locking import locked
from skipnets.training.prepare import prepare
from skipnets.training.task import ClassificationTask
from skipnets.training.trainer import training_dataset
from skipnets.training.tuning import tuning as module
from skipnets.training.tuning.trials import load_study
from skipnets.training.tuning.tuning import TrialReporter
from skipnets.trust import MissingNetworkError, import_trusted


def base(data: Path, out: Path, **changes: Any) -> TrainConfig:
    fields = {
        "data": data,
        "out": out,
        "model": "densenet_bc40_k12",
        "model_options": {"block_config": [1, 1], "growth_rate": 4},
        "epochs": 2,
        "batch_size": 16,
        "augmentation": "none",
        "ema": 0,
        "workers": 0,
        "accelerator": "cpu",
        "block_execution": "plain",
        "channels_last": False,
        "recipe": "scratch",
        "duplicates": "ignore",
    }
    return TrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def tuned(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """Three trials; no test image is opened."""
    opened: list[str] = []
    open_file = Image.open

    def watched(file: Any, *args: Any, **options: Any) -> Image.Image:
        opened.append(str(file if isinstance(file, Path) else file.name))
        return open_file(file, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", watched)
        patch.setattr(module, "survey", lambda *_, **__: "")  # reads all headers
        tuning = tune(base(digits_folder, tmp_path_factory.mktemp("tuning") / "run"), time="1h", trials=3)
    rows = (tuning.folder / "splits.csv").read_text().splitlines()[1:]
    test = {str(digits_folder / row.split(",")[0]) for row in rows if row.split(",")[2] == "test"}
    assert opened
    assert len(test) == 18
    assert not test & set(opened)
    return tuning


def test_trials_are_kept_and_the_best_is_a_run_yaml(tuned: Tuning, tmp_path: Path) -> None:
    trials = tuned.trials
    assert [trial.number for trial in trials] == [1, 2, 3]
    assert all(set(trial.values) == {"lr", "weight_decay"} for trial in trials)
    assert {path.name for path in tuned.folder.iterdir()} == {
        *("base.yaml", "splits.csv", "study.db", "trials.csv", "run.yaml"),
        *("trial-0001", "trial-0002", "trial-0003", "logs"),
    }
    assert not (tuned.folder / "trial-0001" / "checkpoints").exists()
    assert "epoch 2/2" in (tuned.folder / "logs" / "trial-0001.log").read_text()
    best = tuned.best
    assert best is not None
    assert best.value == max(trial.value for trial in trials if trial.state == "complete")
    settings = yaml.safe_load(tuned.config_file.read_text())
    assert settings["lr"] == best.values["lr"]
    text = str(tuned)
    assert f"trial {best.number}" in text
    assert f"skipnets train --config {tuned.config_file}" in text
    run = train(read_config(tuned.config_file, out=tmp_path / "best"))
    assert run.scores["images"] == 18
    # The same settings on the same splits: the trial's own result.
    assert run.rows[run.best_epoch - 1].val_accuracy == best.value


def test_the_first_trial_has_the_default_settings(tuned: Tuning) -> None:
    first = read_config(tuned.folder / "trial-0001" / "run.yaml")
    assert (first.lr, first.weight_decay) == (0.1, 5e-4)


def test_a_tuning_goes_on(tuned: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    original = ClassificationTask.training_step

    def interrupted(self: ClassificationTask, *args: Any) -> Any:
        original(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"go on with: skipnets tune --resume \S+copy --time"):
            resume_tuning(folder, trials=4)
    assert Tuning(folder).trials[-1].reason == "interrupted"
    with pytest.raises(UserError, match=r"^resume: .* is a tuning: skipnets tune --resume \S+copy$"):
        resume(folder)
    went_on = resume_tuning(folder, trials=5)
    assert [trial.state == "failed" for trial in went_on.trials] == [False, False, False, True, False]
    assert resume_tuning(folder, time="1s").best == went_on.best  # there is no time for another


def test_one_process_at_a_time_goes_on_with_a_tuning(
    tuned: Tuning, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    running = load_study(folder).ask()
    with (
        locked(folder),
        pytest.raises(UserError, match=r"^out: \S+copy is in use by another training"),
    ):
        resume_tuning(folder, trials=4)
    assert Tuning(folder).trials[running.number].state == "running"
    refused: list[str] = []

    def resumed_meanwhile(job: Any) -> None:
        with pytest.raises(UserError, match=r"is in use by another training") as caught:
            resume_tuning(job.folder)
        refused.append(str(caught.value))

    monkeypatch.setattr(module, "_work", resumed_meanwhile)  # no trial is completed
    with pytest.raises(UserError, match="no trial was completed"):
        tune(base(digits_folder, tmp_path / "new"))
    resume_tuning(folder)
    assert len(refused) == 2
    assert Tuning(folder).trials[running.number].state == "failed"


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (
            "training_step",
            r"^batch_size=\d+: does not fit into the GPU's memory; take --batch-size \d+ --acc",
        ),
        ("prepare", r"^batch_size=\d+: does not fit into the GPU's memory$"),
    ],
)
def test_a_trial_that_does_not_fit_into_memory_does_not_end_the_tuning(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, message: str
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(gpu_memory, "_gpu_bytes", lambda: 1 << 40)
    # The tuning itself prepares a training before the trials.
    monkeypatch.setattr(trainer if failing == "prepare" else ClassificationTask, failing, out_of_memory)
    with pytest.raises(UserError, match="no trial was completed; the last failed: batch_size="):
        tune(base(digits_folder, tmp_path / "run", batch_size=None), time="1h", trials=2)
    trials = Tuning(tmp_path / "run").trials
    assert [trial.state for trial in trials] == ["failed", "failed"]
    for trial in trials:
        assert re.search(message, trial.reason)
        assert trial.reason.startswith(f"batch_size={trial.values['batch_size']}:")


def test_hopeless_trials_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come once a tenth of the training, with the best value so far."""

    class Module:
        config = TrainConfig(data="x", out=Path("y"), best_by="accuracy")

    class Trainer:
        max_epochs = 4
        should_stop = False
        current_epoch = 0
        callback_metrics: dict[str, float] = {}  # noqa: RUF012

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.65), direction="maximize")
    trial = study.ask()
    reporter, trainer = TrialReporter(trial), Trainer()
    reporter.on_train_start(trainer, Module())  # type: ignore[arg-type]
    for epoch, accuracy in enumerate((0.5, 0.4, 0.7)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val_accuracy": accuracy}
        reporter.on_train_epoch_end(trainer, Module())  # type: ignore[arg-type]
    reported = study.trials[0].intermediate_values
    assert reported == {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.5, 6: 0.7, 7: 0.7}
    assert reporter.pruned
    assert trainer.should_stop


def test_a_fully_trained_trial_is_not_pruned() -> None:
    class Module:
        config = TrainConfig(data="x", out=Path("y"), best_by="accuracy")

    class Trainer:
        max_epochs = 2
        should_stop = False
        current_epoch = 1
        callback_metrics = {"val_accuracy": 0.7}  # noqa: RUF012

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.65), direction="maximize")
    reporter, trainer = TrialReporter(study.ask()), Trainer()
    reporter.on_train_start(trainer, Module())  # type: ignore[arg-type]
    reporter.on_train_epoch_end(trainer, Module())  # type: ignore[arg-type]
    assert study.trials[0].intermediate_values[9] == 0.7
    assert not reporter.pruned
    assert not trainer.should_stop


def write_colors(folder: Path, side: int) -> Path:
    """Twenty red images, and twenty blue ones, in class folders."""
    for label, color in (("a", "red"), ("b", "blue")):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (side, side), color).save(folder / label / f"{number}.png")
    return folder


def test_size_weights_and_precision_of_the_default_are_those_of_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large images, a training without tuning chooses the size with the network; it is prepared once."""
    data = write_colors(tmp_path / "data", 200)
    trained: list[TrainConfig] = []

    def train_on(run: Any, config: TrainConfig, *_: Any, **__: Any) -> None:
        trained.append(config)
        raise UserError("enough")

    speeds = iter(range(1000))
    monkeypatch.setattr(
        choice,
        "seconds_per_image",
        lambda config, *, size, **_: 1e-8 * size[0] * size[1] * config.width * (1 + next(speeds) / 1000),
    )
    monkeypatch.setattr(module, "train_on", train_on)
    options: dict[str, Any] = {"model": None, "model_options": {}, "recipe": None, "epochs": None}
    config = base(data, tmp_path / "run", **options, workers=3)
    with pytest.raises(UserError, match=r"no trial was completed; the last failed: enough$"):
        tune(config, time="10m", trials=2)
    default = prepare(dataclasses.replace(config, time="24s", out=tmp_path / "x"), training_dataset(config))
    expected = default.config
    assert max(expected.size) < 200
    first = trained[0]
    assert (first.model, first.size, first.precision) == (expected.model, expected.size, expected.precision)
    assert [(each.size, each.weights, each.workers) for each in trained] == [(expected.size, None, 3)] * 2
    written = Tuning(tmp_path / "run").base
    assert (written.size, written.precision, written.workers) == (expected.size, expected.precision, 3)


def test_networks_of_trials_have_the_imagenet_weights_that_a_training_would_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_colors(tmp_path / "data", 80)
    cached = {"resnet18", "densenet121"}
    for name in cached:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / url.rpartition("/")[2]).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(prepare_module, "create_model", lambda *_, **__: create_model("resnet8_w16"))
    monkeypatch.setattr(choice, "seconds_per_image", lambda *_, **__: 1e-3)
    trained: list[TrainConfig] = []

    def train_on(run: Any, config: TrainConfig, *_: Any, **__: Any) -> None:
        trained.append(config)
        raise UserError("enough")

    monkeypatch.setattr(module, "train_on", train_on)
    options: dict[str, Any] = {"model": None, "model_options": {}, "recipe": None, "epochs": None}
    with pytest.raises(UserError, match="no trial was completed; the last failed: enough"):
        tune(base(data, tmp_path / "run", **options), time="10m", trials=12)
    assert {each.weights for each in trained} == {"imagenet"}
    assert {each.model for each in trained} == cached


@pytest.mark.slow
def test_a_trial_that_diverges_does_not_end_the_tuning(digits_folder: Path, tmp_path: Path) -> None:
    config = base(digits_folder, tmp_path / "run", lr=1e30, clip=0.0, epochs=1)
    with pytest.raises(UserError, match=r"no trial was completed; the last failed: lr: .*diverged"):
        tune(config, time="1h", trials=2)
    assert [trial.state for trial in Tuning(tmp_path / "run").trials] == ["failed", "failed"]


@pytest.mark.slow
def test_two_processes_share_the_trials(digits_folder: Path, tmp_path: Path) -> None:
    tuning = tune(base(digits_folder, tmp_path / "run", epochs=1), time="1h", trials=4, processes=2)
    trials = tuning.trials
    assert 4 <= len(trials) <= 5  # each may have begun the last one
    assert len({str(trial.values) for trial in trials}) == len(trials)


def test_a_network_of_the_user_s_own_is_tuned_where_it_is_trusted(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(module, "_work", jobs.append)  # no trial is completed
    own = "tests.helpers.own_networks:TinyNet"
    config = base(digits_folder, tmp_path / "run", model=own, model_options={}, epochs=1)
    with pytest.raises(UserError, match=f"its network is {own}, .* load it with trust="):
        tune(config)
    for start in (lambda: tune(config, trust=own), lambda: resume_tuning(config.out, trust=own)):
        with pytest.raises(UserError, match="no trial was completed"):
            start()
        # A process that it is sent to trusts the same.
        monkeypatch.setattr(module.signal, "signal", lambda *_: None)
        monkeypatch.setattr(module, "_work", lambda *_: jobs.append(import_trusted(own)))
        with pytest.raises(MissingNetworkError):
            import_trusted(own)
        module._work_quietly(jobs[0], contextlib.nullcontext())
        assert jobs.pop() is TinyNet
        monkeypatch.setattr(module, "_work", jobs.append)
        jobs.clear()
    with pytest.raises(MissingNetworkError):
        resume_tuning(config.out)

    def interrupted(job: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_work", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"--time 30m --trust {own}$"):
        resume_tuning(config.out, trust=own)


def test_what_a_program_gave_to_a_run_is_not_left_out_of_its_tuning(
    digits_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^supplied=loss: .* a program gave that, which tune cannot repeat"):
        tune(base(digits_folder, tmp_path / "run", supplied=("loss",)))


def test_a_line_tells_of_the_trial_that_ended_not_of_one_that_runs(tuned: Tuning) -> None:
    first, *_, last = tuned.trials
    line = module._line(tuned.trials, first.number, minimize=False, metric="accuracy")
    assert line.startswith(f"trial {first.number}: val accuracy {first.value:.4f}")
    assert not line.startswith(f"trial {last.number}:")


def test_wrong_options_are_one_line(digits_folder: Path, tmp_path: Path) -> None:
    config = base(digits_folder, tmp_path / "run")
    for changes, options, message in (
        ({}, {"time": "soon"}, r"^time='soon': must be a time such as"),
        ({}, {"trials": 0}, r"^trials=0: must be at least 1$"),
        ({}, {"trial_time": "5s"}, r"^trial_time=5s: must be given without epochs=2$"),
        ({"folds": 3}, {}, r"^folds=3: must not be given, trials are judged on one validation split$"),
        ({"find_lr": True}, {}, r"^find_lr: must not be given, the rate is tuned$"),
        ({"epochs": None, "time": "5m"}, {}, r"^time='5m': must not be in the configuration; give the time"),
        ({"lr": 0.1, "weight_decay": 0.1}, {}, r"^there is nothing to tune"),
        ({"devices": 2}, {}, r"^devices: each trial is trained on one device, not on 2$"),
    ):
        with pytest.raises(UserError, match=message):
            tune(base(digits_folder, tmp_path / "run", **changes), **options)  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other.txt").touch()
    with pytest.raises(UserError, match=r"^out: .* is not an empty folder; name a new one$"):
        tune(config)
    with pytest.raises(UserError, match=r"^resume: .* is not the folder of a tuning \(no base.yaml in it\)$"):
        resume_tuning(tmp_path)


def test_processes_of_torchrun_do_not_tune_together(
    tuned: Tuning, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start in (
        lambda: tune(base(digits_folder, tmp_path / "run"), trials=1),
        lambda: resume_tuning(tuned.folder, trials=1),
    ):
        with pytest.raises(UserError, match=r"^devices: each trial is trained on one device, not on 2$"):
            start()


def test_several_labels_are_compared_by_mean_average_precision(tmp_path: Path) -> None:
    data = write_tiles(tmp_path / "tiles", 60)
    config = base(data, tmp_path / "run", group_column="patient", threshold="youden")
    tuning = tune(config, time="1h", trials=2)
    assert tuning.metric == "average-precision"
    best = tuning.best
    assert best is not None
    assert best.value == max(trial.value for trial in tuning.trials if trial.value is not None)
    folder = tuning.folder / f"trial-{best.number:04d}"
    options = DataOptions(group_column="patient")
    validation = find_dataset(data, splits=folder / "splits.csv", options=options).split("val")
    evaluated = evaluate(load(folder, device="cpu"), validation, split="val")
    assert isinstance(evaluated, MultiLabelEvaluation)
    areas = []
    for present, scores in zip(validation.labels.T, evaluated.logits.T, strict=True):
        known = np.isfinite(present)
        if 0 < present[known].sum() < known.sum():
            areas.append(average_precision_score(present[known], scores[known]))
    assert best.value == pytest.approx(np.mean(areas), abs=1e-4)
    assert "best val average-precision" in str(tuning)
    assert read_config(tuning.config_file).threshold == "youden"
    page = write_tuning_report(tuning).read_text(encoding="utf-8")
    assert "Best validation average-precision" in page


@pytest.mark.slow
def test_numbers_are_compared_by_their_mean_absolute_error(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "disks", 60)
    config = base(data, tmp_path / "run", group_column="patient", targets=TARGETS[:1])
    tuning = tune(config, time="1h", trials=2)
    assert (tuning.metric, tuning.minimize) == ("mae", True)
    best = tuning.best
    assert best is not None
    assert best.value == min(trial.value for trial in tuning.trials if trial.value is not None)
    folder = tuning.folder / f"trial-{best.number:04d}"
    options = DataOptions(group_column="patient", targets=TARGETS[:1])
    validation = find_dataset(data, splits=folder / "splits.csv", options=options).split("val")
    evaluated = evaluate(load(folder, device="cpu"), validation, split="val")
    assert isinstance(evaluated, RegressionEvaluation)
    assert best.value == pytest.approx(mean_absolute_error(evaluated.numbers, evaluated.predicted), rel=1e-4)
    assert "best val mae" in str(tuning)
    assert read_config(tuning.config_file).best_by == "mae"
    assert "Best validation mae" in write_tuning_report(tuning).read_text(encoding="utf-8")
