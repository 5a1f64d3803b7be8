"""Where a run's metrics go besides `metrics.csv`: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from skipnets import run_folder
from skipnets.errors import UserError, one_line
from skipnets.training.config import LoggerName, TrainConfig, config_to_dict
from skipnets.training.run import Run

__all__ = ["check_loggers", "log_configuration", "make_loggers"]

_PROJECT = "skipnets"


def _tensorboard(run: Run) -> Logger:
    return TensorBoardLogger(run.folder, name=run_folder.TENSORBOARD, version="")


def _wandb(run: Run) -> Logger:
    return WandbLogger(project=_PROJECT, name=run.folder.name, save_dir=run.folder)


def _mlflow(run: Run) -> Logger:
    # Its store of plain files takes no new runs.
    database = f"sqlite:///{run.folder.absolute() / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI", database)
    return MLFlowLogger(_PROJECT, run_name=run.folder.name, tracking_uri=uri)


_LOGGERS: Mapping[LoggerName, Callable[[Run], Logger] | None] = {
    "csv": None,  # metrics.csv, which every run writes
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
# Libraries that no extra of this package installs.
_NEEDED: Mapping[LoggerName, Literal["wandb", "mlflow"]] = {"wandb": "wandb", "mlflow": "mlflow"}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Check that the libraries of loggers are installed.

    Raises:
        UserError: If one is not.
    """
    for name in names:
        library = _NEEDED.get(name)
        if library is not None and importlib.util.find_spec(library) is None:
            raise UserError(f"logger={name}: needs {library}: pip install {library}")


def make_loggers(run: Run, config: TrainConfig) -> list[Logger]:
    """The loggers that a configuration names; nothing is written yet.

    Args:
        run: What they are named after; what is not sent to a server lies in its folder.
        config: Resolved.

    Raises:
        UserError: If a library is not installed.
    """
    check_loggers(config.logger)
    makers = (_LOGGERS[name] for name in dict.fromkeys(config.logger))
    return [make(run) for make in makers if make is not None]


def log_configuration(loggers: Sequence[Logger], config: TrainConfig) -> None:
    """Begin a run with a service, and give it the configuration; TensorBoard shows metrics alone.

    Raises:
        UserError: If the service fails.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        try:
            logger.log_hyperparams(config_to_dict(config))
        except Exception as error:  # of a server, a database or the network
            raise UserError(f"logger: {type(logger).__name__} fails ({one_line(error)})") from error
