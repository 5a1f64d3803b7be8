"""More epochs for a run: its configuration, its schedule and its early stopping are set to go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.training.checkpoints import newest_checkpoint, write_checkpoint
from skipnets.training.config import TrainConfig
from skipnets.training.optimization import schedule_of_run
from skipnets.training.run import Run, write_config

__all__ = ["extend", "reset_results", "set_schedule"]


def extend(run: Run, epochs: int) -> None:
    """Prepare a run, complete or not, to be resumed up to a larger number of epochs.

    From here on the rate is that of a schedule over all epochs: a cosine that had come down to zero goes on
    from the middle of a longer one.

    Args:
        run: Its results on the test split, which would be those of an earlier model, are removed.
        epochs: In all, not in addition.

    Raises:
        UserError: The run already has as many epochs, or its checkpoint is gone.
    """
    config = run.config
    before = config.epochs or 0
    newest = newest_checkpoint(run)
    if epochs < before or (epochs == before and run.evaluation.exists()):
        raise UserError(f"epochs={epochs}: must be more than the {before} that the run in {run.folder} has")
    if run.rows and newest is None:
        raise UserError(f"resume: {run.checkpoint} is gone, so the run cannot be extended")
    # The new number of epochs goes before the time that the old one came from.
    plan = ((0, epochs),) if config.epoch_plan else ()
    config = dataclasses.replace(config, epochs=epochs, time=None, epoch_plan=plan)
    reset_results(run)
    if newest is not None:
        checkpoint = torch.load(newest, weights_only=True)
        set_schedule(checkpoint, config)
        _be_patient_again(checkpoint)
        with atomic_path(run.checkpoint) as temporary:
            write_checkpoint(checkpoint, temporary)
    write_config(run, config)


def reset_results(run: Run) -> None:
    """Remove the results on the test split; first the file without which a run is not complete."""
    for path in (run.evaluation, run.predictions, run.confusion):
        path.unlink(missing_ok=True)


def set_schedule(checkpoint: dict[str, Any], config: TrainConfig) -> None:
    """Replace the schedule's state and the optimizer's rates by those of the longer schedule at this step."""
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    optimizer = SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": group["initial_lr"]} for group in groups]
    )
    schedule = schedule_of_run(
        optimizer,
        config,
        steps_per_epoch=checkpoint.get(
            "steps_per_epoch", checkpoint["global_step"] // (checkpoint["epoch"] + 1)
        ),
        plan=lambda: config.epoch_plan,
    )
    for _ in range(checkpoint["global_step"]):
        optimizer.step()
        schedule.step()
    checkpoint["lr_schedulers"] = [schedule.state_dict()]
    for group, ours in zip(groups, optimizer.param_groups, strict=True):
        group["lr"] = ours["lr"]


def _be_patient_again(checkpoint: dict[str, Any]) -> None:
    """Early stopping counts the epochs without a better one from zero."""
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("Patience"):
            state["wait_count"] = state["stopped_epoch"] = 0
