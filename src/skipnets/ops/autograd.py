"""Helpers for hand-written backward passes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast: the operations here choose their dtypes themselves."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def separate_graph() -> Iterator[None]:
    """Record a graph of one's own, of which the caller's hooks on saved tensors see nothing."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


def differentiable_once(backward: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Raise where a backward pass would be recorded: second derivatives would be wrong without an error."""

    @functools.wraps(backward)
    def refusing(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a dense block in linear memory cannot be differentiated twice (create_graph=True): "
                'call model.set_block_execution("plain") first'
            )
        return backward(*args, **kwargs)

    return refusing
