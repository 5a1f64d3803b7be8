"""Whether a module that a program hands over can be trained, and in which memory format.

Shapes: N batch, C channels, H height, W width, K outputs; of signals (N, C, L), of volumes (N, C, D, H, W).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from skipnets.errors import UserError, listed, one_line
from skipnets.models.custom_model import CustomModel, misshapen
from skipnets.training.copying import own_copy

__all__ = ["check_step", "usable_channels_last"]

logger = logging.getLogger("skipnets")


def check_step(model: CustomModel, images: Tensor, *, channels_last: bool = False) -> None:
    """Run a training step of a copy, without a change of weights: it may differ from evaluation.

    Args:
        model: Is not changed, and draws no random numbers.
        images: (N, C, H, W) as training gives them.
        channels_last: Whether weights and images are in this memory format.

    Raises:
        UserError: If it fails, returns something else than logits (N, K), or nothing in it is trained.
    """
    name, shape = model.config.name, tuple(images.shape)
    own = own_copy(model, "model").train()
    if images.dtype == torch.float64:  # Lightning's precision 64-true converts it
        own = own.double()
    if others := [name for name, value in own.stored().state_dict().items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"model: {name} has a state besides tensors, which no model file holds: {listed(others)}"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not any(parameter.requires_grad for parameter in own.parameters()):
        raise UserError(f"model: {name} has no parameters to train: none, or none that requires_grad")
    images = images.to(next(own.parameters()).device)
    try:
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            output = own.to(memory_format=layout)(images.to(memory_format=layout))
            wanted = (len(images), model.num_classes)
            if found := misshapen(output, wanted):
                raise UserError(
                    f"model: {name} must return logits of shape {wanted} in training as in evaluation, not "
                    f"{found}; further outputs are for a loss inside of it"
                )
            torch.autograd.backward(output.float().square().mean())
    except UserError:
        raise
    except Exception as error:  # of a user's forward pass, or autograd's
        raise UserError(
            f"model: {name} fails in a training step on images of shape {shape}, "
            f"{str(images.dtype).removeprefix('torch.')} ({one_line(error)})"
        ) from error


def usable_channels_last(model: CustomModel, images: Tensor, asked: bool | None) -> bool | None:
    """`channels_last` as it was asked for, but False where it was not and the network fails in that format.

    Modules that `view` maps as vectors do.

    Args:
        model: Is not changed.
        images: (N, C, H, W).
        asked: Whether to use the format; None for whatever is faster.

    Raises:
        UserError: If the network fails in the format that was asked for.
    """
    if asked is False or images.ndim != 4:
        return asked
    try:
        check_step(model, images, channels_last=True)
    except UserError as error:
        if asked:
            raise UserError(f"channels_last=True: must be left out ({one_line(error)})") from error
        logger.info("channels_last is not used: %s", one_line(error))
        return False
    return asked
