"""More epochs for a run: its configuration, its schedule and its early stopping are set to go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from skipnets.errors import UserError, check_at_least_1
from skipnets.files import atomic_path
from skipnets.training.checkpoints import newest_checkpoint, write_checkpoint
from skipnets.training.config import TrainConfig
from skipnets.training.optimization import schedule_of_run
from skipnets.training.run import Run, write_config

__all__ = ["extend", "extended_config", "set_schedule"]

# Begins the comments of a run.yaml that say what its settings cannot.
_EXTENDED = "# Extended from "


def extended_config(run: Run, epochs: int) -> TrainConfig:
    """The configuration of a run, or of a run with folds, with a larger number of epochs; changes nothing.

    Args:
        run: Complete or not.
        epochs: In all, not in addition.

    Raises:
        UserError: The run, or one of its folds, already has as many epochs, or its checkpoint is gone.
    """
    check_at_least_1(epochs=epochs)
    config = run.config
    # Folds that share a time may have more or fewer epochs than were planned.
    folds = [fold.config.epochs or 0 for fold in run.folds if fold.config_file.exists()]
    before = max([config.epochs or 0, *folds])
    # As many are right where an extension was interrupted.
    if epochs < before or (epochs == before and run.evaluation.exists()):
        raise UserError(f"epochs={epochs}: must be more than the {before} that the run in {run.folder} has")
    if run.rows and newest_checkpoint(run) is None:
        raise UserError(f"resume: {run.checkpoint} is gone, so the run cannot be extended")
    # The new number of epochs goes before the time that the old one came from.
    plan = ((0, epochs),) if config.epoch_plan else ()
    return dataclasses.replace(config, epochs=epochs, time=None, epoch_plan=plan)


def extend(run: Run, epochs: int, say: Callable[[str], None]) -> None:
    """Prepare a run, complete or not, with or without folds, to be resumed up to a larger number of epochs.

    From here on the rate is that of a schedule over all epochs: a cosine that had come down to zero goes on
    from the middle of a longer one. `run.yaml` cannot repeat that, and gets a comment that says so.

    Args:
        run: Whose folder is locked. Its results on the test split, which would be those of an earlier model,
            are removed.
        epochs: In all, not in addition.
        say: Shows a line.

    Raises:
        UserError: The run already has as many epochs, or its checkpoint is gone.
    """
    config = extended_config(run, epochs)
    if run.evaluation.exists():
        say(
            "the run was evaluated on its test split before: if that result made you extend it, the next "
            "one is a little optimistic"
        )
    comments = [
        line for line in run.config_file.read_text("utf-8").splitlines() if line.startswith(_EXTENDED)
    ]
    before = run.config.epochs
    if epochs != before and (run.rows or any(fold.rows for fold in run.folds)):
        comments.append(
            f"{_EXTENDED}{before} to {epochs} epochs: a run with these settings has one schedule over all, "
            "and does not repeat this run exactly."
        )
    _reset_results(run)
    if (newest := newest_checkpoint(run)) is not None:
        checkpoint = torch.load(newest, weights_only=True)
        set_schedule(checkpoint, config)
        _be_patient_again(checkpoint)
        with atomic_path(run.checkpoint) as temporary:
            write_checkpoint(checkpoint, temporary)
    write_config(run, config, comments)


def _reset_results(run: Run) -> None:
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
