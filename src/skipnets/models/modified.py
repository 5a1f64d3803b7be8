"""Whether a model is still the network that its configuration describes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.ops import StochasticDepth

from skipnets.models.backbone import Backbone
from skipnets.models.switched_module import SwitchedModule

__all__ = ["modification", "refused_modification"]

# They do nothing in evaluation, and what they do in training is no part of the network.
_IGNORED = (nn.Dropout, StochasticDepth)


def modification(model: Backbone[Any]) -> str | None:
    """The first difference between a model and a new one of its configuration; None without any.

    The modules are compared, with what they print of themselves: a network with another activation has the
    same tensors, and computes something else.
    """
    expected = {path: _shown(module) for path, module in model.skeleton().named_modules()}
    found = {path: _shown(module) for path, module in model.named_modules()}
    for path in {**expected, **found}:
        if expected.get(path) != found.get(path):
            return (
                f"{path or 'the model'} is {found.get(path) or 'missing'}, in {model.config.name} it is "
                f"{expected.get(path) or 'not there'}"
            )
    return None


def refused_modification(model: Backbone[Any]) -> str | None:
    """What to say where a file of a modified model would claim to hold the network of its name, or None."""
    changed = modification(model)
    if changed is None:
        return None
    return (
        f"the model was modified: {changed}; give what makes it, as architecture={{'import': "
        "'package.module:function', 'arguments': {…}}"
    )


def _shown(module: nn.Module) -> str:
    """Class and arguments of a module, without those inside."""
    if isinstance(module, _IGNORED):
        return type(module).__name__
    # A block that is executed in another way has a subclass of its class.
    kind = next(base for base in type(module).__mro__ if not issubclass(base, SwitchedModule))
    replaced = ", its forward replaced" if "forward" in vars(module) else ""
    return f"{kind.__qualname__}({module.extra_repr()}){replaced}"
