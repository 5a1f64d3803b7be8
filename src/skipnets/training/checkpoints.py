"""Checkpoints: two of them, whole, and within an epoch, so that training resumes to the step."""

from __future__ import annotations

import errno
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from typing_extensions import override

from skipnets.data.loading import ImageLoader
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.training.run import Run
from skipnets.training.task import ClassificationTask

logger = logging.getLogger("skipnets")

# Processes that train together agree on the time this often.
_STEPS_BETWEEN_AGREEMENTS = 20


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, and keeps the one before.

    Lightning's own way goes through a temporary file that may lie on another disk.

    Args:
        run: Whose checkpoints they are.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save it."""
        self.run.check_present()
        with atomic_path(path) as temporary:
            write_checkpoint(checkpoint, temporary)
            if Path(path).exists():
                Path(path).replace(self.run.previous_checkpoint)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint's file.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # of PyTorch's writer in C++, which does not say why
        raise OSError(errno.EIO, "the disk is full or fails") from error


def newest_checkpoint(run: Run) -> Path | None:
    """The last checkpoint that can be read; None before the first.

    Raises:
        UserError: If there are checkpoints, of which none can be read.
    """
    present = [path for path in (run.checkpoint, run.previous_checkpoint) if path.exists()]
    for path in present:
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # what is damaged makes it raise nearly anything
            size = path.stat().st_size
            logger.warning("%s: not a whole checkpoint of tensors and numbers (%d bytes)", path, size)
            continue
        if path != present[0]:
            logger.warning("going on from the checkpoint before it, %s", path)
        return path
    if present:
        raise UserError(
            f"resume: no checkpoint in {run.checkpoint.parent} can be read; the best model so far is "
            f"{run.model}; train again: skipnets train --config {run.config_file} --out ANOTHER"
        )
    return None


class StepCheckpoints(Callback):
    """Writes a checkpoint every so many minutes within an epoch.

    Lightning keeps weights, optimizer, schedule, averaged weights and counters. This adds what it does not,
    for each process: the loader's position, the random number generators, and what the epoch measured so far.

    Args:
        run: Whose checkpoints they are.
        minutes: Between two of them; 0 writes none within an epoch.
    """

    def __init__(self, run: Run, minutes: float) -> None:
        self.run = run
        self.seconds = 60 * minutes
        self._saved = time.monotonic()
        self._is_resumed = False
        self._processes = 1
        self._within_epoch: list[dict[str, Any]] = []
        self._resumed: list[dict[str, Any]] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the loader to where the epoch was interrupted, before its first batch is read."""
        before, self._processes = self._processes, trainer.world_size
        if self._is_resumed and before != trainer.world_size:
            raise UserError(
                f"devices={trainer.world_size}: must be {before}, by which the epochs of this run are "
                "divided; a run with another number of processes is another run"
            )
        if self._resumed:
            _loader(trainer).load_state_dict(self._resumed[trainer.global_rank]["loader"])

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with the random numbers of the interrupted epoch."""
        if self._resumed and batch_idx:
            _restore_generators(self._resumed[trainer.global_rank]["generators"])

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add what was measured before the interruption; write a checkpoint when it is time."""
        if self._resumed:
            assert isinstance(pl_module, ClassificationTask)
            _add_measured(pl_module, self._resumed[trainer.global_rank]["measured"])
            self._resumed = []
        # Gradients that add up over batches are in no checkpoint. At the epoch's end one is written anyway.
        at_boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if at_boundary and not trainer.is_last_batch and self._is_time(trainer, batch_idx):
            assert isinstance(pl_module, ClassificationTask)
            self._within_epoch = _of_all_processes(trainer, pl_module)
            trainer.save_checkpoint(self.run.checkpoint)
            self._within_epoch = []
            self._saved = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here, where another callback writes a checkpoint."""
        self._saved = time.monotonic()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record what a schedule over more epochs is made from."""
        steps = int(trainer.num_training_batches) / trainer.accumulate_grad_batches
        checkpoint["steps_per_epoch"] = math.ceil(steps)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state within an epoch; empty at its end."""
        return {"processes": self._processes, "within_epoch": self._within_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Prepare to go on within an epoch."""
        self._is_resumed = True
        self._processes, self._resumed = state_dict["processes"], state_dict["within_epoch"]

    def _is_time(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if not self.seconds:
            return False
        is_time = time.monotonic() - self._saved >= self.seconds
        if trainer.world_size == 1:
            return is_time
        if (batch_idx + 1) % (_STEPS_BETWEEN_AGREEMENTS * trainer.accumulate_grad_batches):
            return False
        return bool(trainer.strategy.broadcast(is_time))


def _of_all_processes(trainer: pl.Trainer, task: ClassificationTask) -> list[dict[str, Any]]:
    """What each process has to go on with, by its rank."""
    mine = {
        "loader": _loader(trainer).state_dict(),
        "generators": _generators(),
        "measured": _measured(task),
    }
    if trainer.world_size == 1:
        return [mine]
    all_of_them: list[dict[str, Any]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(all_of_them, mine)
    return all_of_them


def _loader(trainer: pl.Trainer) -> ImageLoader:
    loader = trainer.train_dataloader
    assert isinstance(loader, ImageLoader)
    return loader


def _measured(task: ClassificationTask) -> dict[str, Any]:
    """The epoch's training loss, accuracy and gradients so far."""
    measured = task.training_sums
    return {"sums": measured.sums, "images": measured.images, "gradient_norms": task.gradient_norms.copy()}


def _add_measured(task: ClassificationTask, before: dict[str, Any]) -> None:
    """Add what was measured before an interruption to what the first step after it measured."""
    if before["sums"] is not None:
        task.training_sums.add(*before["sums"].to(task.device), images=before["images"])
    device = task.gradient_norms[0].device if task.gradient_norms else task.device
    task.gradient_norms[:0] = [norm.to(device) for norm in before["gradient_norms"]]


def _generators() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators, as what `weights_only` reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - what libraries draw from
    version, state, normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(state), normal],
    }


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, state, normal = states["python"]
    random.setstate((version, tuple(state), normal))
