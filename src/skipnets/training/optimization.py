"""Optimizers and learning-rate schedules. Rates are per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from skipnets.models.backbone import Backbone
from skipnets.models.family import stage_groups
from skipnets.training.config import TrainConfig
from skipnets.training.schedule_plan import progress

# Start of the warm-up, as a fraction of the full rate.
WARMUP_START = 0.01


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Group trainable parameters into those with and without weight decay (norms and biases).

    Norms and biases are the parameters with one dimension (He et al. 2019, arXiv 1812.01187, section 3.1).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if decay_norm_and_bias or p.ndim > 1]
    undecayed = [p for p in trainable if not decay_norm_and_bias and p.ndim <= 1]
    groups = ((decayed, weight_decay), (undecayed, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def layerwise_groups(
    model: Backbone[Any], weight_decay: float, *, decay_norm_and_bias: bool, lr: float, layer_decay: float
) -> list[dict[str, Any]]:
    """The groups of `parameter_groups` for each stage, with rates that fall toward the stem.

    Args:
        model: Its head has the rate `lr`, its last stage `layer_decay` times it, and so on down to the stem.
        weight_decay: Of all stages.
        decay_norm_and_bias: Whether it also acts on norms and biases.
        lr: The head's rate.
        layer_decay: Factor from stage to stage.
    """
    modules = dict(model.named_stages())
    stages = [nn.ModuleList(modules[path] for path in paths) for paths in stage_groups(model.config)]
    in_stages = {id(parameter) for stage in stages for parameter in stage.parameters()}
    head = nn.ParameterList(p for p in model.parameters() if id(p) not in in_stages)
    groups = []
    for depth, part in enumerate([head, *reversed(stages)]):
        for group in parameter_groups(part, weight_decay, decay_norm_and_bias=decay_norm_and_bias):
            groups.append(group | {"lr": lr * layer_decay**depth})
    return groups


def with_bias_rate(
    groups: Iterable[dict[str, Any]], model: nn.Module, *, lr: float, multiple: float
) -> list[dict[str, Any]]:
    """Divide parameter groups into biases, which get a multiple of the rate, and others.

    The public CIFAR-10 speed runs train biases so (Jordan 2024, arXiv 2404.00498, section 3.1).

    Args:
        groups: From `parameter_groups` or `layerwise_groups`; their order is kept.
        model: Whose biases they are.
        lr: The rate of groups without one.
        multiple: Of the rate, for biases.
    """
    biases = {id(parameter) for name, parameter in model.named_parameters() if name.endswith("bias")}
    divided = []
    for group in groups:
        rate = group.get("lr", lr)
        for is_bias in (False, True):
            part = [p for p in group["params"] if (id(p) in biases) == is_bias]
            if part:
                divided.append(group | {"params": part, "lr": rate * multiple if is_bias else rate})
    return divided


def make_optimizer(
    name: Literal["sgd", "adamw"],
    groups: Iterable[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    fused: bool,
) -> Optimizer:
    """Create SGD or AdamW in its fused form, or its foreach form if the fused one cannot be used.

    Args:
        name: Name of the optimizer.
        groups: From `parameter_groups`.
        lr: The highest learning rate.
        momentum: SGD's momentum, AdamW's first beta.
        nesterov: SGD only.
        fused: Must be False if the unscaled gradient is needed before the step (clipping under a gradient
            scaler).
    """
    form: dict[str, bool] = {"fused": True} if fused else {"foreach": True}
    if name == "adamw":
        return AdamW(list(groups), lr=lr, betas=(momentum, 0.999), **form)
    return SGD(list(groups), lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, **form)


def make_schedule(
    optimizer: Optimizer,
    name: Literal["constant", "milestones", "cosine", "linear"],
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup: float,
    milestones: Sequence[float],
) -> LRScheduler:
    """Create a schedule: a linear warm-up, then a constant rate, drops at milestones, a cosine or a line.

    Args:
        optimizer: Optimizer whose groups hold the highest rate.
        name: Schedule after the warm-up.
        steps_per_epoch: Optimizer steps per epoch.
        epochs: Number of epochs.
        warmup: Length of the warm-up in epochs, included in `epochs`.
        milestones: Fractions of the training, rounded to whole epochs.
    """
    total = steps_per_epoch * epochs
    rising = min(round(warmup * steps_per_epoch), total - 1)
    after: LRScheduler
    if name == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=total - rising)
    elif name == "linear":
        after = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=total - rising)
    elif name == "milestones":
        at = sorted({max(round(part * epochs) * steps_per_epoch - rising, 1) for part in milestones})
        after = MultiStepLR(optimizer, milestones=at, gamma=0.1)
    else:
        after = ConstantLR(optimizer, factor=1.0, total_iters=0)
    if rising == 0:
        return after
    # The second schedule has already set the initial rate; LinearLR must find the full one.
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    before = LinearLR(optimizer, start_factor=WARMUP_START, total_iters=rising)
    return SequentialLR(optimizer, [before, after], milestones=[rising])


def schedule_of_run(
    optimizer: Optimizer,
    config: TrainConfig,
    *,
    steps_per_epoch: int,
    plan: Callable[[], Sequence[tuple[int, int]]],
) -> LRScheduler:
    """The schedule that a resolved configuration describes.

    Args:
        optimizer: Optimizer whose groups hold the highest rate.
        config: With `epoch_plan` where the number of epochs came from a time.
        steps_per_epoch: Optimizer steps per epoch.
        plan: Returns the plan as it is now, if the configuration has one.
    """
    assert config.schedule is not None
    assert config.epochs is not None
    warmup, milestones = config.warmup or 0.0, config.milestones or ()
    if config.epoch_plan:
        return follow_progress(
            optimizer,
            config.schedule,
            lambda step: progress(step / steps_per_epoch, plan()),
            warmup=warmup / config.epoch_plan[0][1],
            milestones=milestones,
        )
    return make_schedule(
        optimizer,
        config.schedule,
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        warmup=warmup,
        milestones=milestones,
    )


def follow_progress(
    optimizer: Optimizer,
    name: Literal["constant", "milestones", "cosine", "linear"],
    progress: Callable[[int], float],
    *,
    warmup: float,
    milestones: Sequence[float],
) -> LRScheduler:
    """Create a schedule over the share of the training that is done, for trainings whose length may change.

    Args:
        optimizer: Optimizer whose groups hold the highest rate.
        name: Schedule after the warm-up.
        progress: From the number of steps taken to the share of the training that is done, 0 to 1.
        warmup: Share of the training over which the rate rises linearly.
        milestones: Shares of the training after which the rate is divided by ten.
    """

    def factor(step: int) -> float:
        done = progress(step)
        if done < warmup:
            return WARMUP_START + (1 - WARMUP_START) * done / warmup
        after = (done - warmup) / max(1 - warmup, 1e-9)
        if name == "cosine":
            return (1 + math.cos(math.pi * after)) / 2
        if name == "linear":
            return 1 - after
        return float(0.1 ** sum(done >= part for part in milestones)) if name == "milestones" else 1.0

    return LambdaLR(optimizer, factor)


@torch.no_grad()
def average_towards(average: list[torch.Tensor], current: list[torch.Tensor], weight: float) -> None:
    """Update an exponential moving average: average += weight · (current − average).

    Counters, such as a norm's number of batches, are copied.
    """
    if torch.is_floating_point(average[0]):
        torch._foreach_lerp_(average, current, weight)
    else:
        torch._foreach_copy_(average, current)
