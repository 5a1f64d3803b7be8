"""A logger that keeps what it is given."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import Logger


class RecordingLogger(Logger):
    """Keeps metrics, hyperparameters and how often it was finalized."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self.hyperparameters: dict[str, Any] = {}
        self.finalized = 0

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

    def finalize(self, status: str) -> None:
        self.finalized += 1
