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
    from skipnets.training.tuning.tuning import Tuning, resume_tuning, tune

__all__ = [
    "RECIPES",
    "Run",
    "TrainConfig",
    "TrainingInterrupted",
    "Tuning",
    "read_config",
    "resume",
    "resume_tuning",
    "train",
    "tune",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "RECIPES": "recipes",
        "Run": "run",
        "TrainConfig": "config",
        "TrainingInterrupted": "interruption",
        "Tuning": "tuning.tuning",
        "read_config": "config",
        "resume": "trainer",
        "resume_tuning": "tuning.tuning",
        "train": "trainer",
        "tune": "tuning.tuning",
    },
    extra="train",
)
