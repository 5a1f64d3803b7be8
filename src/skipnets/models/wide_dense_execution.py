"""RDNet's dense blocks that train as one operation (`skipnets.ops.wide_dense_block`), and networks of them.

`skipnets.models.block_execution` gives blocks and networks these classes and takes them away again.

Shapes: N batch, C channels, H height, W width, k growth rate, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.models.backbone import every_child
from skipnets.models.layers import EffectiveSqueezeExcitation, LayerNorm2d
from skipnets.models.rdnet import RDNet, RDNetBlock, RDNetLayer
from skipnets.models.switched_module import DividedBlock, Part, SwitchedNetwork
from skipnets.ops import guards
from skipnets.ops.wide_dense_block import WideDenseBlockPlan, WideLayerParameters, wide_dense_block

_PARTS = (nn.Conv2d, LayerNorm2d, nn.Conv2d, nn.GELU, nn.Conv2d)


class _CheckedBlock(NamedTuple):
    """A block of which some layers at least can run as one operation, as it was when that was checked."""

    structure: guards.Structure
    parts: list[Part]


# Not an attribute, as copies would take it along.
_CHECKED: WeakKeyDictionary[nn.Module, _CheckedBlock] = WeakKeyDictionary()


class MemoryEfficientRDNetBlock(DividedBlock, RDNetBlock):
    """A dense block that trains as one operation, or as several where some layers run by themselves."""

    has_operator = False

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + L·k, H, W)."""
        if self.unsupported_reason(features) is not None:
            return RDNetBlock.forward(self, features)
        return self._run_parts(features)

    def _run_as_one(self, part: Part, features: Tensor) -> Tensor:
        layers = _own_layers(part)
        ones = features.new_ones(features.shape[0], 1, 1, 1)
        plan = WideDenseBlockPlan(
            eps=tuple(cast(LayerNorm2d, _parts(layer)[1]).eps for layer in layers),
            keep_outputs=torch.is_grad_enabled() and not self.recompute,
        )
        return wide_dense_block(
            features,
            plan,
            [_parameters(layer) for layer in layers],
            # What stochastic depth does to ones: the factor of each image, drawn as layer by layer.
            [layer.drop_path(ones).flatten() if layer.drop_path.p > 0 else None for layer in layers],
        )

    def unsupported_structure(self) -> str | None:
        """Why the block as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        checked = _CHECKED.get(self)
        if checked is not None and checked.structure.unchanged():
            return None
        reason = _unsupported_layers(self)
        if reason is None:
            _CHECKED[self] = _CheckedBlock(guards.Structure(self), _divided(self))
        return reason

    def _parts(self) -> list[Part]:
        checked = _CHECKED.get(self)
        return _divided(self) if checked is None else checked.parts

    def _unsupported_by(self, part: Part, features: Tensor) -> str | None:
        if features.ndim != 4:
            return "the input is not (N, C, H, W)"
        layers = _own_layers(part)
        parameters = [each for layer in layers for each in _parameters(layer) if each is not None]
        if guards.computing_dtype(features.device, parameters[0].dtype) != parameters[0].dtype:
            return "autocast is on"
        return guards.unsupported_input(features, parameters)


class MemoryEfficientRDNet(SwitchedNetwork, RDNet):
    """An RDNet whose blocks are switched one by one."""


def _parts(layer: RDNetLayer) -> list[nn.Module]:
    """The modules of a layer, in order."""
    return list(cast(nn.Sequential, layer.layers.layers))


def _parameters(layer: RDNetLayer) -> WideLayerParameters:
    """The tensors of a layer that has been checked, as they are now."""
    depthwise, norm, first, _, second, *gate = _parts(layer)
    parts = [depthwise, norm, first, second, *(cast(EffectiveSqueezeExcitation, each).fc for each in gate)]
    tensors: list[Any] = [each for part in parts for each in (part.weight, part.bias)]
    return WideLayerParameters(*tensors, *([] if gate else [None, None]), layer.gamma)  # type: ignore[call-arg]


def _unsupported_layers(block: nn.Module) -> str | None:
    """Why none of a block's layers can run in an operation, or None."""
    if reason := guards.unsupported_hooks(()):
        return reason
    layers = dict(every_child(block))
    if not layers:
        return "it has no layers"
    for name, layer in layers.items():  # As a configuration asks for it: for all of them.
        if isinstance(layer, RDNetLayer) and (reason := _unsupported_dropout(layer)):
            return f"{name}: {reason}"
    parts = _divided(block)
    if all(part.reason for part in parts):
        return f"{next(iter(parts[0].layers))}: {parts[0].reason}"
    return None


def _divided(block: nn.Module) -> list[Part]:
    """A block's layers, as many together as can run as one operation."""
    parts: list[Part] = []
    channels = None  # that a layer reads which continues the last part
    for name, layer in every_child(block):
        reason = _unsupported_layer(layer)
        if reason is not None:
            parts.append(Part({name: layer}, reason))
            channels = None
            continue
        own = cast(RDNetLayer, layer)
        depthwise, *_ = _parts(own)
        reads = cast(nn.Conv2d, depthwise).in_channels
        if channels == reads:
            parts[-1].layers[name] = layer
        else:
            parts.append(Part({name: layer}))
        channels = reads + _parameters(own).weight2.shape[0]
    return parts


def _own_layers(part: Part) -> list[RDNetLayer]:
    """Of a part that runs as one operation."""
    return cast(list[RDNetLayer], list(part.layers.values()))


def _unsupported_layer(layer: nn.Module) -> str | None:
    """Why a layer cannot be part of an operation, or None."""
    if type(layer) is not RDNetLayer:
        return f"it is a {type(layer).__name__}, none of the block's own layers"
    if reason := guards.unsupported_hooks(layer.modules()):
        return reason
    if [name for name, _ in layer.named_children()] != ["layers", "drop_path", "dropout"]:
        return "it has other modules than layers, drop_path and dropout"
    if reason := _unsupported_dropout(layer):
        return reason
    parts = _parts(layer)
    norm = parts[1] if len(parts) > 1 else None
    if type(norm) is not LayerNorm2d:
        return f"its norm is a {type(norm).__name__}, not a LayerNorm2d"
    if len(parts) > 3 and type(parts[3]) is not nn.GELU:
        return "its activation is not a GELU"
    kinds = tuple(map(type, parts))
    if kinds not in (_PARTS, (*_PARTS, EffectiveSqueezeExcitation)):
        return "its modules are not two convolutions behind a depthwise one, with norm and GELU"
    first, second = cast(nn.Conv2d, parts[2]), cast(nn.Conv2d, parts[4])
    channels = norm.normalized_shape[0]
    wanted: list[tuple[nn.Module, int, int]] = [
        (parts[0], 7, channels),
        (first, 1, 1),
        (second, 1, 1),
        *((part.fc, 1, 1) for part in parts[5:] if isinstance(part, EffectiveSqueezeExcitation)),
    ]
    return next(filter(None, (_unsupported_convolution(*each) for each in wanted)), None) or (
        "its GELU is an approximation" if cast(nn.GELU, parts[3]).approximate != "none" else None
    )


def _unsupported_dropout(layer: RDNetLayer) -> str | None:
    """Which dropout of a layer would be left out, or None."""
    if type(layer.dropout) is not nn.Dropout or layer.dropout.p > 0:
        return "dropout"
    if type(layer.drop_path) is not StochasticDepth or layer.drop_path.mode != "row":
        return "another stochastic depth than that of images"
    return None


def _unsupported_convolution(convolution: nn.Module, size: int, groups: int) -> str | None:
    """The convolution must keep the map's size and have a bias."""
    if type(convolution) is not nn.Conv2d:
        return f"its convolution is a {type(convolution).__name__}, not a Conv2d"
    wanted = {
        "kernel_size": (size, size),
        "stride": (1, 1),
        "padding": (size // 2, size // 2),
        "dilation": (1, 1),
        "groups": groups,
        "padding_mode": "zeros",
    }
    for name, value in wanted.items():
        if getattr(convolution, name) != value:
            return f"a convolution has another {name} than {value}"
    return "a convolution has no bias" if convolution.bias is None else None
