"""Suppress Lightning's tips and warnings for authors of training loops."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import rich
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

# Each of these is intended here, or concerns Lightning's own code.
_IGNORED = (
    r"The .*dataloader.* does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r"Checkpoint directory .* exists and is not empty",
    r"The dirpath has changed from",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"It is recommended to use `self.log\('train_",  # whose values are summed over the processes already
    r"Found \d+ module\(s\) in eval mode at the start of training",
)
_LOGGERS = ("pytorch_lightning", "lightning", "lightning_fabric")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's messages in the block, and send its progress bar to standard error."""
    console = rich.get_console()
    before = console.__dict__
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    excepthook = threading.excepthook
    with warnings.catch_warnings():
        _silence()
        rich.reconfigure(stderr=True)
        threading.excepthook = _without_tensorboard(excepthook)
        try:
            yield
        finally:
            threading.excepthook = excepthook
            console.__dict__ = before
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _without_tensorboard(excepthook: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook for exceptions of threads but TensorBoard's, which raises them where it is used, too."""

    def hook(arguments: Any) -> None:
        if "_AsyncWriterThread" not in type(arguments.thread).__name__:
            excepthook(arguments)

    return hook


class QuietProcesses(Callback):
    """Suppresses Lightning's messages in processes that it spawns, which do not inherit the filters."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if multiprocessing.parent_process() is not None:
            _silence()


def _silence() -> None:
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
