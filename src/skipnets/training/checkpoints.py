"""Checkpoints: two of them, whole, and within an epoch, so that training resumes to the step.

A run may go on with fewer processes than it was started with. Its epochs stay divided into as many shares;
each process takes several, and adds up their gradients before a step, so every step sees the same images.
"""

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
from skipnets.training.callbacks import seed_everything
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


def shares_of(checkpoint: Path | None, processes: int) -> int:
    """Into how many shares a run's epochs are divided: one for each process that it was started with.

    Args:
        checkpoint: That the run goes on from; None if it begins.
        processes: How many train now.

    Raises:
        UserError: The shares cannot be dealt out to so many.
    """
    if checkpoint is None:
        return processes
    callbacks = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
    shares = next((state["processes"] for state in callbacks.values() if "within_epoch" in state), processes)
    if shares % processes:
        raise UserError(
            f"devices={processes}: must divide {shares}, the number of processes that the run was started "
            "with: each takes equally many of their shares of an epoch"
        )
    return int(shares)


class StepCheckpoints(Callback):
    """Writes a checkpoint every so many minutes within an epoch.

    Lightning keeps weights, optimizer, schedule, averaged weights and counters. This adds what it does not,
    for each process: the loader's position, the random number generators, and what the epoch measured so far.

    Args:
        run: Whose checkpoints they are.
        minutes: Between two of them; 0 writes none within an epoch.
        seed: The run's.

    Attributes:
        shares: Into how many an epoch is divided (`shares_of`).
    """

    def __init__(self, run: Run, minutes: float, *, seed: int) -> None:
        self.run = run
        self.seconds = 60 * minutes
        self.shares = 1
        self.seed = seed
        self._saved = time.monotonic()
        self._processes = 1
        self._within_epoch: list[dict[str, Any]] = []
        self._resumed: list[dict[str, Any]] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the loader to where the epoch was interrupted, before its first batch is read."""
        if self._resumed and self._processes != trainer.world_size:
            self._resumed = dealt_out(self._resumed, trainer.world_size)
        self._processes = trainer.world_size
        if self._resumed:
            _loader(trainer).load_state_dict(self._resumed[trainer.global_rank]["loader"])

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with the random numbers of the interrupted epoch."""
        if self._resumed and batch_idx:
            states = self._resumed[trainer.global_rank]["generators"]
            if states is None:
                seed_everything(self.seed, trainer.current_epoch, trainer.global_rank, batch_idx)
            else:
                _restore_generators(states)

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
        return {
            "processes": self.shares,
            "written_by": self._processes,
            "within_epoch": self._within_epoch,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Prepare to go on within an epoch."""
        # Of a run that could not go on with other processes, both numbers are one.
        self._processes = state_dict.get("written_by", state_dict["processes"])
        self._resumed = state_dict["within_epoch"]

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches as this number of processes does."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:  # a run of 0.1, which wrote none within an epoch
            return
        before = self.shares // state.get("written_by", state["processes"])
        now = self.shares // trainer.world_size
        if before != now:
            recount(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], before=before, now=now)

    def _is_time(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if not self.seconds:
            return False
        is_time = time.monotonic() - self._saved >= self.seconds
        if trainer.world_size == 1:
            return is_time
        if (batch_idx + 1) % (_STEPS_BETWEEN_AGREEMENTS * trainer.accumulate_grad_batches):
            return False
        return bool(trainer.strategy.broadcast(is_time))


def recount(progress: dict[str, Any], *, before: int, now: int) -> None:
    """Change Lightning's count of a process's batches, where a process takes other numbers of shares.

    Args:
        progress: `batch_progress` of a checkpoint, which is written between two steps.
        before: Shares of a process that wrote it.
        now: Shares of a process that reads it.
    """
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"]
        for name, count in counts.items():
            # A batch that is not complete yet is one batch in either count.
            counts[name] = ready * now // before - (ready - count)


def dealt_out(states: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """What each process has to go on with, where others wrote it.

    Args:
        states: Of the processes that wrote a checkpoint.
        processes: How many go on.

    Raises:
        UserError: Processes are not equally far, because images could not be read.
    """
    loaders = [state["loader"] for state in states]
    if any(loader["owed"] or loader["left"] or loader["read"] != loaders[0]["read"] for loader in loaders):
        raise UserError(
            f"devices={processes}: must be {len(states)} up to the end of this epoch, in which images that "
            "could not be read have put the processes out of step"
        )
    read = loaders[0]["read"] * len(states) // processes
    failures = {name: reason for loader in loaders for name, reason in loader["failures"].items()}
    measured = [state["measured"] for state in states]
    sums = [each["sums"] for each in measured if each["sums"] is not None]
    images = sum(each["images"] for each in measured)
    # What all of them measured counts once. Gradients are those of all.
    norms = measured[0]["gradient_norms"]
    return [
        {
            "loader": {"read": read, "owed": 0, "left": 0, "failures": failures},
            "generators": None,
            "measured": {
                "sums": torch.stack(sums).sum(0) if sums and not rank else None,
                "images": 0 if rank else images,
                "gradient_norms": norms,
            },
        }
        for rank in range(processes)
    ]


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
