"""What to change where a training step does not fit into the GPU's memory."""

from __future__ import annotations

from typing import Any

import torch

from skipnets.models.accounting import training_bytes
from skipnets.models.backbone import Backbone
from skipnets.models.block_execution import execution_report
from skipnets.models.custom_model import CustomModel
from skipnets.models.family import family_of, network_graph
from skipnets.training.config import ResolvedConfig
from skipnets.training.run import Run

__all__ = ["out_of_memory"]


def out_of_memory(run: Run, config: ResolvedConfig, model: Backbone[Any]) -> str:
    """What would fit into the GPU: a smaller batch, by the network's graph, or a policy that needs less."""
    if isinstance(model, CustomModel):
        half, steps = max(config.batch_size // 2, 1), 2 * config.accumulate
        return (
            f"batch_size={config.batch_size}: does not fit into the GPU's memory; take --batch-size {half} "
            f"--accumulate {steps}"
        )
    runs_as_one = any(not policy.startswith("plain") for policy in execution_report(model).values())
    execution = config.block_execution
    if execution == "auto":
        execution = "linear" if runs_as_one else "plain"
    width = 2 if config.precision in ("bf16-mixed", "16-mixed") else 1
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    fixed, with_one = (
        training_bytes(network_graph(model.config), config.size, images, execution, parameters=parameters)
        for images in (0, 1)
    )
    fits = (_gpu_bytes() - fixed) * width // (with_one - fixed)
    steps = max(-(-config.batch_size // max(fits, 1)), 2)
    smaller = f"--batch-size {config.batch_size // steps} --accumulate {steps * config.accumulate}"
    message = f"batch_size={config.batch_size}: does not fit into the GPU's memory; take {smaller}"
    if execution != "linear-recompute" and "linear-recompute" in family_of(model.config).executions:
        message += " or --block-execution linear-recompute, which needs less"
    if run.rows:
        message += f"; the best model so far (epoch {run.best_epoch}) is {run.model}"
    return message


def _gpu_bytes() -> int:
    """All of the GPU's memory."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
