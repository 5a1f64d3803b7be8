"""Training: recipes, the run folder, and what Lightning drives.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.training.config import TrainConfig, read_config
    from skipnets.training.interruption import TrainingInterrupted
    from skipnets.training.recipes import RECIPES
    from skipnets.training.run import Run
    from skipnets.training.trainer import resume, train

__all__ = ["RECIPES", "Run", "TrainConfig", "TrainingInterrupted", "read_config", "resume", "train"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "RECIPES": "recipes",
        "Run": "run",
        "TrainConfig": "config",
        "TrainingInterrupted": "interruption",
        "read_config": "config",
        "resume": "trainer",
        "train": "trainer",
    },
    extra="train",
)
