"""Temporary eval mode, and copies of a model whose mode and hooks are their own."""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class _Borrowed:
    """How many blocks have a model in eval mode at present, and which of its modules were training before."""

    blocks: int = 0
    training: list[nn.Module] = field(default_factory=list)


_LOCK = threading.Lock()
_BORROWED: weakref.WeakKeyDictionary[nn.Module, _Borrowed] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for the block, then restore each module's own mode.

    Blocks of several threads may overlap: the last one restores the modes.
    """
    with _LOCK:
        borrowed = _BORROWED.setdefault(model, _Borrowed())
        if borrowed.blocks == 0:
            borrowed.training = [module for module in model.modules() if module.training]
            model.eval()
        borrowed.blocks += 1
    try:
        yield
    finally:
        with _LOCK:
            borrowed.blocks -= 1
            if borrowed.blocks == 0:
                for module in borrowed.training:
                    module.training = True
                borrowed.training = []


def sharing_tensors(model: Model) -> Model:
    """Copy a model's modules but not its tensors, so that hooks on the copy see no calls of other threads."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})


def copied(model: Model) -> Model:
    """Copy a model with its tensors, also one whose modules keep some of their last call.

    Those are in a graph, which `copy.deepcopy` refuses; their copies are not.
    """
    made = (tensor for tensor in _tensors(model) if not tensor.is_leaf)
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in made})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and what modules keep in other attributes, lists and dictionaries included."""
    for module in model.modules():
        yield from (value for value in tree_leaves(vars(module)) if isinstance(value, Tensor))
