"""Adapt a checkpoint to another number of classes or input channels.

Shapes: O output channels, C input channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skipnets.models.backbone import make_head
from skipnets.models.weights.target import NoMatchError, Target


def adapt_stem(target: Target, values: dict[str, Tensor]) -> str | None:
    """Adapt the first convolution to the model's input channels.

    Args:
        target: What the model expects.
        values: Tensors by the model's names; the stem's is replaced if it differs.

    Returns:
        A sentence for the report if it was adapted.
    """
    wanted, channels = target.tensors[target.stem].shape[1], values[target.stem].shape[1]
    if channels == wanted:
        return None
    values[target.stem] = adapt_channels(values[target.stem], wanted)
    how = "summed over its input channels" if wanted == 1 else "repeated and rescaled"
    return f"first convolution {how}: {target.stem} has {channels} in the source and {wanted} in the model"


def reset_head(target: Target, values: dict[str, Tensor]) -> str | None:
    """Initialize the head newly if the checkpoint has none, or one for another number of classes.

    Args:
        target: What the model expects.
        values: Tensors by the model's names; the head's are replaced if they differ or are missing.

    Returns:
        A sentence for the report if it was initialized.

    Raises:
        NoMatchError: If the head's weight and bias disagree.
    """
    if not target.num_classes:
        return None
    weight, bias = target.head_names
    if weight not in values:
        change = "head newly initialized: the source has none"
    else:
        classes = len(values[weight])
        if values[bias].shape[0] != classes:
            raise NoMatchError(f"{weight} is for {classes} classes and {bias} for {values[bias].shape[0]}")
        if classes == target.num_classes:
            return None
        change = (
            f"head re-initialized: {target.head} is for {classes} classes in the source "
            f"and {target.num_classes} in the model"
        )
    shape = target.tensors[weight].shape  # of a linear layer, or of a 1×1 convolution
    fresh = make_head(shape[1], target.num_classes).state_dict()
    values[weight], values[bias] = fresh["weight"].view(shape), fresh["bias"]
    return change


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """(O, C, …) → (O, channels, …), with outputs of the same scale.

    One channel: the sum over C, exact for images whose C channels were equal. Others: repeated in turn and
    multiplied by C / channels, which keeps the scale of the outputs.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    have = weight.shape[1]
    times = (1, math.ceil(channels / have), *[1] * (weight.ndim - 2))
    return weight.repeat(times)[:, :channels] * (have / channels)
