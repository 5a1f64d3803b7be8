from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tests.helpers.recording_logger import RecordingLogger

from skipnets.errors import UserError
from skipnets.training import Run, TrainConfig, loggers, resume, train
from skipnets.training.loggers import check_loggers, logged, make_loggers
from skipnets.training.run import claim

MakeConfig = Callable[..., TrainConfig]


def test_tensorboard_is_the_default(tiny: MakeConfig, tmp_path: Path) -> None:
    (logger,) = make_loggers(Run(tmp_path), tiny())
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "tensorboard"
    assert make_loggers(Run(tmp_path), tiny(logger=("csv",))) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_one_line_before_anything_is_written(
    tiny: MakeConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None if found == name else find(found))
    config = tiny(logger=("csv", name))
    with pytest.raises(UserError, match=f"logger={name}: needs {name}: pip install {name}"):
        train(config)
    assert not config.out.exists()
    check_loggers(["csv", "tensorboard"])


def test_an_unknown_name_is_one_line(tiny: MakeConfig) -> None:
    with pytest.raises(UserError, match="logger"):
        tiny(logger=("comet",))


def test_loggers_get_the_metrics_and_services_the_configuration(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = RecordingLogger(), RecordingLogger()
    monkeypatch.setitem(loggers._LOGGERS, "wandb", lambda _: service)  # type: ignore[arg-type]
    monkeypatch.setattr(loggers, "check_loggers", lambda _: None)
    monkeypatch.setattr("skipnets.training.trainer.check_loggers", lambda _: None)
    config = tiny(epochs=1, logger=("wandb", "csv"))
    run = train(config, logger=own)
    assert not (run.folder / "tensorboard").exists()
    row = run.rows[0]
    for logger in (service, own):
        assert logger.metrics["val_accuracy"] == pytest.approx(row.val_accuracy)
        assert logger.metrics["train_loss"] == pytest.approx(row.train_loss)
        assert logger.metrics["images_per_second"] == pytest.approx(row.images_per_second)
        assert logger.metrics["test_accuracy"] == run.scores["accuracy"]
    assert service.hyperparameters["batch_size"] == 16
    assert service.hyperparameters["optimizer"] == "sgd"


class Failing(RecordingLogger):
    """A service that does not answer."""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")


def test_a_service_that_does_not_answer_is_one_line_and_no_run_is_begun(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(epochs=1)
    with monkeypatch.context() as patched:
        patched.setitem(loggers._LOGGERS, "tensorboard", lambda _: Failing())  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^logger: Failing fails \(no route to host\)$"):
            train(config)
    assert not Run(config.out).config_file.exists()
    claim(config.out)  # which is free


class FakeWandb(SimpleNamespace):
    """The part of wandb that keeps a process's run."""

    run: Any = None
    ended: list[int]


def test_runs_of_weights_and_biases_end_with_the_training(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wandb(RecordingLogger):
        def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
            wandb.run = wandb.run or SimpleNamespace(finish=lambda exit_code: wandb.ended.append(exit_code))

    wandb = FakeWandb(ended=[])
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr(loggers, "WandbLogger", Wandb)
    with logged([Wandb()], tiny()):
        assert wandb.run is not None
    wandb.run = None
    with pytest.raises(KeyError), logged([Wandb()], tiny()):
        raise KeyError
    assert wandb.ended == [0, 1]
    with logged([Wandb()], tiny()):  # in the run of a program, which ends it itself
        pass
    wandb.run = None
    with logged([], tiny(), supplied=[Wandb()]):
        pass
    assert wandb.ended == [0, 1]


def test_parts_are_named_after_the_whole(tmp_path: Path) -> None:
    assert loggers._name(Run(tmp_path / "runs" / "cats")) == "cats"
    for marker in ("run.yaml", "base.yaml"):
        whole = tmp_path / marker.removesuffix(".yaml")
        whole.mkdir()
        (whole / marker).touch()
        assert loggers._name(Run(whole / "fold-1")) == f"{whole.name}/fold-1"


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, no network, and nothing in the home folder."""
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    working = tmp_path / "working"
    working.mkdir()
    with contextlib.chdir(working):
        yield working


def wandb_records(run: Run) -> list[Any]:
    """The records of a run's only offline file: LevelDB's log format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = run.folder.glob("wandb/offline-run-*/*.wandb")
    data, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def mlflow_runs(run: Run, metric: str = "val_loss") -> list[tuple[str, str, dict[str, str], list[float]]]:
    """Name, status, parameters and the values of a metric, of the runs in a run's own database."""
    with contextlib.closing(sqlite3.connect(run.folder / "mlflow.db")) as database:
        return [
            (
                name,
                status,
                dict(database.execute("select key, value from params where run_uuid = ?", [number])),
                [
                    value
                    for (value,) in database.execute(
                        "select value from metrics where run_uuid = ? and key = ? order by step",
                        [number, metric],
                    )
                ],
            )
            for number, name, status in database.execute(
                "select run_uuid, name, status from runs order by start_time"
            ).fetchall()
        ]


@pytest.mark.slow
def test_tensorboard_shows_the_test_metrics_of_a_run_that_was_extended(tiny: MakeConfig) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = resume(train(tiny(epochs=1)).folder, epochs=2)
    events = reading.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert len(events.Scalars("val_loss")) == 2
    first, second = events.Scalars("test_accuracy")
    assert first.step < second.step
    assert second.value == pytest.approx(run.scores["accuracy"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_each_fold_is_a_run_of_weights_and_biases(tiny: MakeConfig, services: Path) -> None:
    pytest.importorskip("wandb")
    run = train(tiny(folds=2, epochs=2, logger=("wandb",)))
    for number, fold in enumerate(run.folds, start=1):
        records = wandb_records(fold)
        [begun] = [record.run for record in records if record.HasField("run")]
        assert (begun.project, begun.display_name) == ("skipnets", f"{run.folder.name}/fold-{number}")
        config = {
            update.key: update.value_json
            for record in records
            if record.HasField("config")
            for update in record.config.update
        }
        assert config["batch_size"] == "16"
        values: dict[str, list[float]] = {"val_loss": [], "test_accuracy": []}
        for record in records:
            for item in record.history.item if record.HasField("history") else ():
                for name in {item.key, *item.nested_key} & set(values):
                    values[name].append(float(item.value_json))
        assert values["val_loss"] == pytest.approx([row.val_loss for row in fold.rows])
        assert values["test_accuracy"] == pytest.approx([fold.scores["accuracy"]])
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert not list(services.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_each_fold_has_a_database_of_mlflow(tiny: MakeConfig, services: Path) -> None:
    pytest.importorskip("mlflow")
    run = train(tiny(folds=2, epochs=2, logger=("mlflow",)))
    for number, fold in enumerate(run.folds, start=1):
        [(name, status, parameters, losses)] = mlflow_runs(fold)
        assert (name, status) == (f"{run.folder.name}/fold-{number}", "FINISHED")
        assert (parameters["batch_size"], parameters["optimizer"]) == ("16", "sgd")
        assert losses == pytest.approx([row.val_loss for row in fold.rows])
        [(_, status, _, tested)] = mlflow_runs(fold, "test_accuracy")
        assert (status, tested) == ("FINISHED", pytest.approx([fold.scores["accuracy"]]))
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not list(services.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_has_its_configuration_in_mlflow(tiny: MakeConfig, services: Path) -> None:
    pytest.importorskip("mlflow")
    run = resume(train(tiny(epochs=1, logger=("mlflow", "csv"))).folder, epochs=2)
    first, second = mlflow_runs(run)
    assert (first[2]["epochs"], second[2]["epochs"]) == ("1", "2")
    assert [*first[3], *second[3]] == pytest.approx([row.val_loss for row in run.rows])
    assert not list(services.iterdir())
