"""What every hand-written backward pass here has in common."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast out: the operations here choose their types themselves."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def differentiable_once(backward: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Refuse to record a backward pass, which would give silently wrong second derivatives."""

    @functools.wraps(backward)
    def refusing(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a dense block in linear memory cannot be differentiated twice (create_graph=True): "
                'call model.set_block_execution("plain") first'
            )
        return backward(*args, **kwargs)

    return refusing
