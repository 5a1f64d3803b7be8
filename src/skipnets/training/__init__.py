"""Training: recipes, the run folder, and what Lightning drives.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets.training.config import TrainConfig, read_config
    from skipnets.training.recipes import RECIPES
    from skipnets.training.run import Run
    from skipnets.training.trainer import TrainingInterrupted, resume, train

_MODULES = {
    "RECIPES": "recipes",
    "Run": "run",
    "TrainConfig": "config",
    "TrainingInterrupted": "trainer",
    "read_config": "config",
    "resume": "trainer",
    "train": "trainer",
}

__all__ = ["RECIPES", "Run", "TrainConfig", "TrainingInterrupted", "read_config", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
