"""Checks whether a hand-written training operation can replace modules.

Every function returns the reason why it cannot, as a short phrase, or None.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_internals

# Of signals, images and volumes.
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
MaxPooling = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
_CONVOLUTIONS, _MAX_POOLINGS = get_args(Convolution), get_args(MaxPooling)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""A module's attributes with the hooks that a forward or backward pass calls."""

_GLOBAL_HOOK_TABLES = tuple(f"_global{table}" for table in HOOK_TABLES)


def unsupported_tracing(x: object) -> str | None:
    """Tracers and function transforms need the modules themselves."""
    if torch._C._get_tracing_state() is not None:
        return "the model is being traced"
    if isinstance(x, torch.fx.Proxy):
        return "the model is being traced symbolically"
    return unsupported_transform()


def unsupported_transform() -> str | None:
    """An operation differentiates in its own way, backward and once."""
    if torch._C._are_functorch_transforms_active():
        return "a function transform (torch.func) is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def unsupported_input(x: Tensor, parameters: Iterable[Tensor], *, casts: bool = False) -> str | None:
    """The operations take ordinary tensors of one floating dtype, and autocast's lower one.

    Args:
        x: (N, C, H, W).
        parameters: All that take part.
        casts: Whether the operation begins with a convolution, which autocast gives an input of its own type.
    """
    parameters = list(parameters)
    compiling = (
        torch.compiler.is_compiling()
    )  # Then tensors are fake, and inference is the compiler's matter.
    if not compiling and any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, *parameters)):
        return "a tensor subclass is in use"
    dtype = parameters[0].dtype
    if dtype not in (torch.float32, torch.float64) or any(tensor.dtype != dtype for tensor in parameters):
        return "parameters are not all of float32 or all of float64"
    if any(tensor.device != x.device for tensor in parameters):
        return "input and parameters are on different devices"
    if x.layout != torch.strided or (not compiling and x.is_inference()):
        return "the input is sparse or an inference tensor"
    if x.dtype != computing_dtype(x.device, dtype) and not (casts and x.dtype == dtype):
        return f"the input is {x.dtype}, not {computing_dtype(x.device, dtype)}"
    if x.shape[0] * x.shape[2:].numel() < 2:
        return "there is one value a channel: no batch statistics"
    return None


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of convolutions with parameters of this dtype: autocast's where it is on."""
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if autocast and dtype == torch.float32 else dtype


def unsupported_norm(norm: nn.Module) -> str | None:
    """The norm must be a batch norm that uses the batch's statistics."""
    if type(norm) not in _BATCH_NORMS:
        return f"its norm is {_article(type(norm).__name__)}, not a BatchNorm2d"
    if not norm.training:
        return "a norm is in eval mode"
    if norm.weight is None or norm.bias is None:
        return "a norm has no scale and shift"
    return None


def unsupported_activation(activation: nn.Module, norm: nn.Module) -> str | None:
    """The activation must be a ReLU; the norm before it says where it has one of its own."""
    if type(activation) is nn.ReLU:
        return None
    if isinstance(activation, nn.Identity) and type(norm) not in _BATCH_NORMS:
        return unsupported_norm(norm)
    return "its activation is not a ReLU"


def unsupported_convolution(convolution: nn.Module, size: int, *, stride: int = 1) -> str | None:
    """The convolution must be a plain one of this size and stride, padded by half its size, without bias."""
    if not isinstance(convolution, Convolution) or type(convolution) not in _CONVOLUTIONS:
        return f"its convolution is {_article(type(convolution).__name__)}, not a Conv2d"
    dims = len(convolution.kernel_size)
    wanted = {
        "kernel_size": (size,) * dims,
        "stride": (stride,) * dims,
        "padding": (size // 2,) * dims,
        "dilation": (1,) * dims,
        "groups": 1,
        "padding_mode": "zeros",
        "bias": None,
    }
    for name, value in wanted.items():
        if getattr(convolution, name) != value:
            return f"a convolution has another {name} than {value}"
    return None


def unsupported_max_pooling(pool: nn.Module) -> str | None:
    """The pooling must be the maximum of 3×3 at stride 2."""
    wanted = nn.MaxPool2d(3, 2, 1)
    known = isinstance(pool, MaxPooling) and type(pool) in _MAX_POOLINGS
    if not known or pool.extra_repr() != wanted.extra_repr() or pool.return_indices:
        return "its pooling is not the maximum of 3×3 at stride 2"
    return None


def unsupported_hooks(modules: Iterable[nn.Module]) -> str | None:
    """Hooks and a replaced `forward` of a module that is not run would not be called."""
    if any(getattr(module_internals, table, None) for table in _GLOBAL_HOOK_TABLES):
        return "global module hooks are registered"
    for module in modules:
        if any(getattr(module, table, None) for table in HOOK_TABLES):
            return "hooks are registered on modules inside"
        if "forward" in vars(module):
            return "a module's forward is replaced"
    return None


class Structure:
    """What the checks of a module's descendants have read, to see at little cost that nothing has changed.

    These are the descendants' classes, children, modes, attributes, hooks and parameters (which they are, not
    their values). Replaced by an equal one also counts as changed. The module itself is not referred to.

    Args:
        module: Whose descendants have no hooks.
    """

    def __init__(self, module: nn.Module) -> None:
        inside = [descendant for descendant in module.modules() if descendant is not module]
        self._modules = inside
        self._tables: list[Mapping[str, Any]] = [module._modules]
        for each in inside:
            self._tables += [vars(each), each._modules, each._parameters]
        self._hooks = [vars(each)[table] for each in inside for table in HOOK_TABLES]
        self._read = self._values()

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        if any(self._hooks) or any(getattr(module_internals, table, None) for table in _GLOBAL_HOOK_TABLES):
            return False
        now = self._values()
        return len(now) == len(self._read) and all(map(operator.is_, now, self._read))

    def _values(self) -> list[object]:
        values = chain.from_iterable(table.values() for table in self._tables)
        return [*map(type, self._modules), *values]


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"
