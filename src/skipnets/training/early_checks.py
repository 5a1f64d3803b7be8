"""What is wrong with a run's options, data or folder as far as that shows without PyTorch, within a moment.

Importing PyTorch takes seconds, after which nobody wants to hear of a mistyped name. Training checks the same
again, and what needs the images.
"""

from __future__ import annotations

from pathlib import Path

from skipnets import run_folder
from skipnets.classifier import describe
from skipnets.data.sources import check_data
from skipnets.errors import UserError, naming
from skipnets.models.registry import model_config
from skipnets.training.config import TrainConfig
from skipnets.training.run import claim, is_helper
from skipnets.trust import is_import

__all__ = ["check_early", "check_options", "check_tuning_folder"]


def check_early(config: TrainConfig) -> None:
    """Check what a new run is asked for.

    Args:
        config: Of a run whose network and images are the configuration's.

    Raises:
        UserError: Wrong options, no such data or network, or a folder that is not free.
    """
    check_options(config)
    if not config.supplied:  # a run to which a program gave that, which a message tells later
        if config.components is None:  # which may bring images
            check_data(config.data)
        if config.model is not None and not is_import(config.model):
            model_config(config.model, **config.model_options)
    if not is_helper():  # in whose folder the first process may have begun
        claim(config.out)


def check_options(config: TrainConfig) -> None:
    """Check that options do not contradict one another, and that there is the teacher that they name.

    Raises:
        UserError: If two do, or there is none.
    """
    if config.time is not None and config.epochs is not None and not config.epoch_plan:
        raise UserError(f"time={config.time!r}: must be given without epochs={config.epochs}")
    if config.weights_ignore and config.weights is None:
        raise UserError(f"weights_ignore={', '.join(config.weights_ignore)}: needs weights")
    if config.find_lr and config.lr is not None:
        raise UserError(f"find_lr: must be given without lr={config.lr:g}")
    if config.whiten_stem and config.weights is not None:
        raise UserError(
            f"whiten_stem: must be given without weights={config.weights}, which has its own stem"
        )
    if clash := sorted({"num_classes", "in_chans"} & set(config.model_options)):
        raise UserError(
            f"model_options: {clash[0]} follows from the data; remove it (channels sets in_chans)"
        )
    for name, needed, is_there in (
        ("teacher_temperature", "teacher", config.teacher is not None),
        ("teacher_share", "teacher", config.teacher is not None),
        ("focal_gamma", "loss=focal", config.loss == "focal"),
    ):
        if (value := getattr(config, name)) != getattr(TrainConfig, name) and not is_there:
            raise UserError(f"{name}={value:g}: needs {needed}")
    if config.teacher is not None:
        _check_teacher(config.teacher)


def _check_teacher(teacher: str) -> None:
    """Look into a teacher's file; whether it fits the images shows later."""
    with naming("teacher"):
        if "export" in describe(teacher):
            raise UserError(f"{teacher} is an export: take the model file that it was made from")


def check_tuning_folder(folder: Path) -> None:
    """Check that a folder is free for a new tuning.

    Raises:
        UserError: If it holds a tuning or anything else.
    """
    if (folder / run_folder.TUNING).exists():
        raise UserError(f"out: {folder} already holds a tuning; resume it: skipnets tune --resume {folder}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out: {folder} is not an empty folder; name a new one")
