"""Lightning's part of a run: its trainer, PyTorch's settings while it trains, and its errors in one line."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import StrategyRegistry

from skipnets.errors import UserError, near_matches, one_line
from skipnets.training.callbacks import EpochBar
from skipnets.training.checkpoints import AtomicCheckpoints
from skipnets.training.config import ResolvedConfig
from skipnets.training.data import ImageDataModule
from skipnets.training.gpu_memory import out_of_memory
from skipnets.training.run import Run
from skipnets.training.speed import training_device, wrong_devices
from skipnets.training.task import ClassificationTask

__all__ = ["fit", "make_trainer", "on_gpu", "processes"]


def make_trainer(
    run: Run, config: ResolvedConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger]
) -> pl.Trainer:
    """Lightning's trainer for a run.

    Args:
        run: Where its checkpoints go.
        config: Of the run.
        callbacks: All but that of the last checkpoint.
        loggers: All of them.

    Raises:
        UserError: Lightning refuses devices, accelerator or strategy, or would fork processes.
    """
    on_gpu = training_device(config.accelerator).type == "cuda"
    checkpoint = ModelCheckpoint(
        run.checkpoint.parent,
        filename=run.checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    try:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            **processes(config),
            strategy=config.strategy,
            precision=config.precision,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip or None,
            callbacks=[*callbacks, checkpoint],
            logger=loggers,
            plugins=[AtomicCheckpoints(run)],
            enable_progress_bar=any(isinstance(callback, EpochBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # Our loader deals the images out to the devices.
            use_distributed_sampler=False,
            # On the CPU nothing needs it, and it would fill every fresh tensor with NaN.
            deterministic="warn" if on_gpu else None,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(
            _wrong_device(config) or f"accelerator={config.accelerator}: {one_line(error)}"
        ) from None
    # A forked process lacks the threads that PyTorch computes with, and would wait for them for ever.
    # "Compatible with notebooks" are Lightning's launchers that fork.
    launcher = trainer.strategy.launcher
    if launcher is not None and launcher.is_interactive_compatible:
        raise UserError(
            f"devices={config.devices}: would be forked processes here (as in a notebook), in which PyTorch "
            "can hang; train in a program with strategy=ddp or ddp_spawn, or on one device"
        )
    return trainer


def processes(config: ResolvedConfig) -> dict[str, Any]:
    """Lightning's `devices` and `num_nodes`: under torchrun, what that was given."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if not local:
        return {"devices": config.devices}
    return {"devices": local, "num_nodes": int(os.environ["WORLD_SIZE"]) // local}


def _wrong_device(config: ResolvedConfig) -> str | None:
    """Which of the options that Lightning refused is wrong, and what would be right."""
    known = ("auto", "ddp", "ddp_spawn")
    if config.strategy not in {*known, *StrategyRegistry.available_strategies()}:
        near = near_matches(config.strategy, known)
        return f"strategy={config.strategy!r}: must be one of {', '.join(known)}{near}"
    return wrong_devices(config.devices)


@contextlib.contextmanager
def on_gpu(precision: str) -> Iterator[None]:
    """Settings of PyTorch for training on a GPU: float32 products in TF32 unless 32-true was asked for.

    Deterministic algorithms would also fill all fresh memory, which costs as much as a pass over it.
    """
    deterministic: Any = torch.utils.deterministic
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        deterministic.fill_uninitialized_memory,
        products.allow_tf32,
        convolutions.allow_tf32,
    )
    deterministic.fill_uninitialized_memory = False
    products.allow_tf32 = convolutions.allow_tf32 = precision not in ("32-true", "64-true")
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory, products.allow_tf32, convolutions.allow_tf32 = before


def fit(
    trainer: pl.Trainer, task: ClassificationTask, data: ImageDataModule, run: Run, checkpoint: Path | None
) -> None:
    """Let Lightning train, on from a checkpoint if there is one.

    Raises:
        UserError: The GPU's memory is too small, another process was lost, or the run cannot be written.
    """
    try:
        trainer.fit(
            task,
            datamodule=data,
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except torch.OutOfMemoryError:
        raise UserError(out_of_memory(run, task.config, task.model)) from None
    except RuntimeError as error:
        # Gloo's and NCCL's errors have no class of their own.
        if trainer.world_size == 1 or not re.search("gloo|NCCL|Connection (closed|reset)", str(error)):
            raise
        run.check_present()
        raise UserError(
            f"another process of this training was lost; go on with all of them: "
            f"skipnets train --resume {run.folder} ({one_line(error)})"
        ) from error
    except OSError as error:  # of TensorBoard's files, which are not written by us
        run.check_present()
        raise UserError(
            f"out: {run.folder} cannot be written: {error.strerror or one_line(error)}; "
            f"go on with: skipnets train --resume {run.folder}"
        ) from error
    finally:
        data.close()
