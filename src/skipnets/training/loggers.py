"""Where a run's metrics go besides `metrics.csv`: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from skipnets import run_folder
from skipnets.errors import UserError, one_line
from skipnets.training.config import LoggerName, TrainConfig, config_to_dict
from skipnets.training.run import Run

__all__ = ["check_loggers", "logged", "make_loggers"]

_PROJECT = "skipnets"
_TRACKING = "MLFLOW_TRACKING_URI"


def _tensorboard(run: Run) -> Logger:
    return TensorBoardLogger(run.folder, name=run_folder.TENSORBOARD, version="")


def _wandb(run: Run) -> Logger:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers, which nobody asked for
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    logger = WandbLogger(project=project, name=_name(run), save_dir=run.folder)
    # Lightning always hands this on, and newer versions of wandb warn of it.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    return logger


def _mlflow(run: Run) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # likewise
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    if (server := os.environ.get(_TRACKING)) is not None:
        return MLFlowLogger(experiment, run_name=_name(run), tracking_uri=server)
    folder = run.folder.absolute()
    return MLFlowLogger(
        experiment,
        run_name=_name(run),
        # Its store of plain files takes no new runs.
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        artifact_location=str(folder / "mlartifacts"),  # not in the working directory
    )


def _name(run: Run) -> str:
    """What a service calls a run: its folder; of a fold or a trial, with the folder of the whole."""
    whole = run.folder.absolute().parent
    is_part = any((whole / name).is_file() for name in (run_folder.CONFIG, run_folder.TUNING))
    return f"{whole.name}/{run.folder.name}" if is_part else run.folder.name


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


@contextlib.contextmanager
def logged(
    loggers: Sequence[Logger], config: TrainConfig, *, supplied: Sequence[Logger] = ()
) -> Iterator[None]:
    """Begin a run with each service, give it the configuration, and end the run with the block.

    Otherwise a service would take what the same process trains next, such as another fold, for the same run.

    Args:
        loggers: From `make_loggers`.
        config: Resolved.
        supplied: By a program, which ends their runs itself.

    Raises:
        UserError: If a service fails.
    """
    tracking = os.environ.get(_TRACKING)  # which MLflow changes
    already = _wandb_run()
    exit_code = 1
    try:
        _log_configuration([*loggers, *supplied], config)
        yield
        exit_code = 0
    finally:
        begun = _wandb_run()
        if (
            begun is not None
            and begun is not already
            and any(isinstance(each, WandbLogger) for each in loggers)
        ):
            begun.finish(exit_code=exit_code)
        if any(isinstance(each, MLFlowLogger) for each in loggers):
            importlib.import_module("mlflow").set_tracking_uri(tracking)


def _wandb_run() -> Any:
    """The run of Weights & Biases that this process is in, if any."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _log_configuration(loggers: Sequence[Logger], config: TrainConfig) -> None:
    """Begin a run with each service, and give it the configuration; TensorBoard shows metrics alone."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        values = config_to_dict(config)
        if isinstance(logger, MLFlowLogger):  # which takes no such names as "dense block 8-12>16"
            values = {
                name: json.dumps(value) if name == "operators" else value for name, value in values.items()
            }
        try:
            logger.log_hyperparams(values)
        except Exception as error:  # of a server, a database or the network
            offline = "; WANDB_MODE=offline keeps runs on this machine"
            raise UserError(
                f"logger: {type(logger).__name__} fails ({one_line(error)})"
                f"{offline if isinstance(logger, WandbLogger) else ''}"
            ) from error
