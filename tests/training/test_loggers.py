from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from skipnets.errors import UserError
from skipnets.training import Run, TrainConfig, loggers, train
from skipnets.training.loggers import check_loggers, make_loggers

MakeConfig = Callable[..., TrainConfig]


class Recording(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self.hyperparameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "recording"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics |= metrics

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.hyperparameters |= params


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
    service, own = Recording(), Recording()
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
    assert service.hyperparameters["batch_size"] == 16
    assert service.hyperparameters["optimizer"] == "sgd"
