"""How a run executes its network: what neither the user nor an earlier run says is measured on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from skipnets.models.backbone import Backbone
from skipnets.models.execution_choice import fastest_execution, operator_choices
from skipnets.models.family import family_of
from skipnets.models.graph import ExecutionPolicy
from skipnets.ops.choices import CHOICES
from skipnets.training.config import TrainConfig
from skipnets.training.speed import device_count, training_device


def choose_execution(
    model: Backbone[Any], given: TrainConfig, config: TrainConfig, size: tuple[int, ...]
) -> dict[str, Any]:
    """Choose how blocks run, in which memory format, and what computes each layer shape.

    Args:
        model: Its block execution is set.
        given: The configuration as the user or an earlier run gives it.
        config: With the recipe's defaults.
        size: Height and width of the images.

    Returns:
        `block_execution`, `channels_last` and `operators` of the resolved configuration.
    """
    policy: ExecutionPolicy | None = given.block_execution
    channels_last, operators = given.channels_last, dict[str, str]()
    CHOICES.repeat(given.operators or {})
    if len(family_of(model.config).executions) == 1 and policy in (None, "auto"):
        policy = "plain"
    too_small = min(size) < model.config.smallest_size  # That is refused later.
    if too_small or training_device(config.accelerator).type != "cpu":
        policy = policy or config.block_execution or "plain"
        channels_last = config.channels_last if channels_last is None else channels_last
        channels_last = channels_last and model.config.dims == 2
    else:
        if channels_last is None and device_count(config.devices, config.accelerator) > 1:
            # Processes that train together need one memory format, whatever each of them would measure.
            channels_last = bool(config.channels_last) and model.config.dims == 2
        shape = (config.batch_size or 1, model.in_chans, *size)
        wanted = None if policy is None or policy == "auto" else policy
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            execution = fastest_execution(model, shape, policy=wanted, channels_last=channels_last)
            policy, channels_last = execution
            if policy != "plain":
                # Also where they are recorded: for other shapes, and where one is not available here, others
                # are chosen.
                operators = operator_choices(model, shape, execution)
    model.set_block_execution(policy)
    return {"block_execution": policy, "channels_last": channels_last, "operators": operators}
