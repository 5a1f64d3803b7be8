"""How blocks, transitions and stems are executed in training, chosen from outside.

`"auto"` takes what is fastest on the device that they run on; on a CPU that is measured. `"plain"` runs
them layer by layer, as `skipnets.models.densenet` and `skipnets.models.resnet` define them. `"linear"` runs
each as one operation of `skipnets.ops` that keeps memory in proportion to the depth; `"linear-recompute"`
keeps less still of dense blocks and repeats their 1×1 convolutions in the backward pass. The numbers are the
same. Where an operation could not be right (eval mode, dropout, hooks on layers inside, …) the block runs
plainly; of a dense block, that layer alone, between operations for the layers before and after it.
`execution_report` says what and why.

A module is switched by giving it a subclass of its class that overrides `forward` alone: parameters,
children and names stay, and so do hooks on it, copying and pickling.

Shapes: N batch, C channels, H height, W width, k growth rate, L layers. Maps (N, C, H, W) are (N, C, L) of
    signals and (N, C, D, H, W) of volumes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.axes import AXES
from skipnets.errors import UserError, listed, near_matches
from skipnets.models.backbone import every_child
from skipnets.models.densenet import BasicDenseLayer, DenseBlock, DenseLayer, DenseNet, Transition
from skipnets.models.graph import BLOCK_EXECUTIONS, ExecutionPolicy
from skipnets.models.rdnet import RDNet, RDNetBlock
from skipnets.models.residual_execution import (
    MemoryEfficientBasicBlock,
    MemoryEfficientBottleneckBlock,
    MemoryEfficientResNet,
)
from skipnets.models.resnet import BasicBlock, BottleneckBlock, ResNet
from skipnets.models.spatial import AVERAGE_POOLINGS
from skipnets.models.switched_module import (
    NOT_MEASURED,
    DividedBlock,
    Part,
    SwitchedModule,
    SwitchedNetwork,
)
from skipnets.models.wide_dense_execution import MemoryEfficientRDNet, MemoryEfficientRDNetBlock
from skipnets.ops import guards, stem
from skipnets.ops.batch_norm import Statistics, update_all_running_statistics, update_running_statistics
from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters, cpu_executor, dense_block, growth_widths
from skipnets.ops.transition import TransitionParameters, transition
from skipnets.ops.transition import cpu_executor as transition_executor
from skipnets.ops.triton import unsupported_block, unsupported_kernels

logger = logging.getLogger("skipnets")

_STEM = ("conv0", "norm0", "relu0", "pool0")
_NO_MEASURER = "the classes DenseNet, ResNet and RDNet alone measure on a CPU what is fastest"


class _LayerParts(NamedTuple):
    """The modules of a dense layer that compute; the second pair with a bottleneck only."""

    norm1: nn.BatchNorm2d
    conv1: nn.Conv2d
    norm2: nn.BatchNorm2d | None
    conv2: nn.Conv2d | None

    @classmethod
    def of(cls, layer: nn.Module) -> _LayerParts:
        """From a layer whose modules have been checked, or are about to be."""
        return cls(*(getattr(layer, name, None) for name in cls._fields))  # type: ignore[arg-type]

    @property
    def growth_convolution(self) -> nn.Conv2d:
        """The 3×3 convolution, which makes the layer's k maps."""
        return self.conv1 if self.conv2 is None else self.conv2

    def widths(self) -> tuple[int, int, int]:
        """Channels that it reads, that its first convolution makes, and that it adds."""
        return self.norm1.num_features, self.conv1.out_channels, self.growth_convolution.out_channels

    def parameters(self) -> LayerParameters:
        """The tensors, as they are now."""
        first = (self.norm1.weight, self.norm1.bias, self.conv1.weight)
        if self.norm2 is None or self.conv2 is None:
            return LayerParameters(*first)
        return LayerParameters(*first, self.norm2.weight, self.norm2.bias, self.conv2.weight)


@dataclass
class _DensePart(Part):
    """A part, with the modules of its layers, in order, where these run as one operation."""

    modules: list[_LayerParts] = field(default_factory=list)

    def parameters(self) -> list[LayerParameters]:
        """Of these layers, as they are now."""
        return [each.parameters() for each in self.modules]

    def is_followed_by(self, layer: nn.Module) -> bool:
        """Whether a layer that can be part of an operation can be part of this one."""
        if self.reason is not None or type(layer) is not type(next(iter(self.layers.values()))):
            return False
        sees, makes, adds = self.modules[-1].widths()
        return _LayerParts.of(layer).widths() == (sees + adds, makes, adds)


class _CheckedBlock(NamedTuple):
    """A block of which some layers at least can run as one operation, as it was when that was checked."""

    structure: guards.Structure
    parts: list[_DensePart]


# The check takes as long as the kernels of a small block. Not an attribute, as copies would take it along.
_CHECKED: WeakKeyDictionary[nn.Module, _CheckedBlock] = WeakKeyDictionary()


class MemoryEfficientDenseBlock(DividedBlock, DenseBlock):
    """A dense block that trains as one operation, or as several where some layers run by themselves."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + L·k, H, W)."""
        if self.unsupported_reason(features) is not None:
            return DenseBlock.forward(self, features)
        return self._run_parts(features)

    def _run_as_one(self, part: Part, features: Tensor) -> Tensor:
        layers = cast(_DensePart, part).modules
        parameters = [layer.parameters() for layer in layers]
        tensors = [features, *(each for layer in parameters for each in layer if each is not None)]
        trains = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        plan = DenseBlockPlan(
            eps1=tuple(layer.norm1.eps for layer in layers),
            eps2=tuple(layer.norm2.eps for layer in layers if layer.norm2 is not None),
            keep_bottleneck=trains and not self.recompute,
            dtype=features.dtype,
        )
        if torch.compiler.is_compiling():
            from skipnets.ops import operators

            fused = self._not_fused(features) is None
            result = operators.dense_block(features, plan, parameters, fused=fused)
        else:
            result = dense_block(features, plan, parameters)
        norms = [layer.norm1 for layer in layers]
        statistics = [result.statistics.first(norm.num_features) for norm in norms]
        for index, layer in enumerate(layers):
            if layer.norm2 is not None:
                norms.append(layer.norm2)
                statistics.append(result.bottleneck_statistics.row(index))
        update_all_running_statistics(norms, statistics, _count(features))
        if not torch.compiler.is_compiling():
            _attach_statistics(result.features, result.statistics)
        return result.features

    def unsupported_structure(self) -> str | None:
        """Why the block as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        if torch.compiler.is_compiling():  # It watches by itself what the checks read.
            return self._unsupported_layers() or (
                "a compiler takes blocks of one operation" if len(self._parts()) > 1 else None
            )
        checked = _CHECKED.get(self)
        if checked is not None and checked.structure.unchanged():
            return None
        reason = self._unsupported_layers()
        if reason is None:
            _CHECKED[self] = _CheckedBlock(guards.Structure(self), _divided(self))
        return reason

    def _parts(self) -> list[_DensePart]:
        """What runs one after the other, of a block that has been checked."""
        checked = None if torch.compiler.is_compiling() else _CHECKED.get(self)
        return _divided(self) if checked is None else checked.parts

    def _unsupported_layers(self) -> str | None:
        if len(self) == 0:
            return "it has no layers"
        if reason := guards.unsupported_hooks(()):
            return reason
        for name, layer in every_child(self):  # As a configuration asks for it: for all of them.
            if reason := _unsupported_dropout(layer):
                return f"{name}: {reason}"
        parts = _divided(self)
        if all(part.reason for part in parts):
            return f"{next(iter(parts[0].layers))}: {parts[0].reason}"
        return None

    def _first_parameters(self) -> list[LayerParameters]:
        return cast(_DensePart, self._first_operation()).parameters()

    def _runs_natively(self, features: Tensor) -> bool:
        layers = self._first_parameters()
        reads = layers[0].gamma1.numel()
        if features.shape[1] != reads:  # other layers come before it
            features = features.new_empty(features.shape[0], reads, *features.shape[2:])
        return cpu_executor(features, features.dtype, layers) == "native"

    def _not_fused(self, features: Tensor) -> str | None:
        return _unsupported_block(features, self._first_parameters()[:1])

    def _unsupported_by(self, part: Part, features: Tensor) -> str | None:
        layers = cast(_DensePart, part).parameters()
        return guards.unsupported_input(
            features, [each for layer in layers for each in layer if each is not None]
        )


class MemoryEfficientTransition(SwitchedModule, Transition):
    """A transition that trains as one operation."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌊H/2⌋, ⌊W/2⌋)."""
        if self.unsupported_reason(features) is not None:
            return cast(Tensor, Transition.forward(self, features))  # type: ignore[no-untyped-call]
        norm = cast(nn.BatchNorm2d, self.norm)
        parameters = self._tensors()
        if torch.compiler.is_compiling():
            from skipnets.ops import operators

            fused = self._not_fused(features) is None
            result = operators.transition(features, parameters, norm.eps, fused=fused)
        else:
            statistics = _attached_statistics(features)
            result = transition(features, parameters, norm.eps, statistics=statistics)
        update_running_statistics(norm, result.statistics, _count(features))
        return result.maps

    def unsupported_structure(self) -> str | None:
        """Why the transition as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        if [name for name, _ in self.named_children()] != ["norm", "relu", "conv", "pool"]:
            return "it has other modules than norm, relu, conv and pool"
        if reason := guards.unsupported_activation(self.relu, self.norm):
            return reason
        if _pooling(self.pool) not in [_pooling(kind(2)) for kind in AVERAGE_POOLINGS.values()]:
            return "its pooling is not the average of 2×2"
        return (
            guards.unsupported_hooks(self.children())
            or guards.unsupported_norm(self.norm)
            or guards.unsupported_convolution(self.conv, size=1)
        )

    def _tensors(self) -> TransitionParameters:
        """Of a transition that has been checked."""
        norm = cast(nn.BatchNorm2d, self.norm)
        return TransitionParameters(norm.weight, norm.bias, self.conv.weight)

    def _runs_natively(self, features: Tensor) -> bool:
        return transition_executor(features, self._tensors()) == "native"

    def _not_fused(self, features: Tensor) -> str | None:
        return _unsupported_kernels(features.device, features.dtype, features.ndim - 2)

    def _unsupported_input(self, features: Tensor) -> str | None:
        if min(features.shape[2:]) < 2:
            return "the map is too small to pool"
        return guards.unsupported_input(features, self._tensors())


class MemoryEfficientDenseNet(SwitchedNetwork, DenseNet):
    """A DenseNet whose ImageNet stem trains as one operation; its blocks are switched one by one.

    `forward_intermediates`, which shows a map from within the stem, runs its layers.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map (N, num_features, h, w), after its norm and ReLU."""
        x = self._checked(x)
        if self.unsupported_reason(x) is not None:
            return self._run_stages(x)
        plan, parameters = self._stem_operation(x)
        if torch.compiler.is_compiling():
            from skipnets.ops import operators

            fused = self._not_fused(x) is None
            maps, statistics, rows = operators.stem(x, plan, parameters, fused=fused)
        else:
            maps, statistics, rows = stem.stem(x, plan, parameters)
        update_running_statistics(self._stem()[1], statistics, rows)
        for _, stage in islice(self.named_stages(), len(_STEM), None):
            maps = stage(maps)
        return maps

    def unsupported_structure(self) -> str | None:
        """Why the stem as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        modules = dict(islice(every_child(self.features), len(_STEM)))
        if tuple(modules) != _STEM:
            return f"it has other modules than {', '.join(_STEM)}"
        if reason := guards.unsupported_activation(modules["relu0"], modules["norm0"]):
            return reason
        return (
            guards.unsupported_max_pooling(modules["pool0"])
            or guards.unsupported_hooks((self.features, *modules.values()))
            or guards.unsupported_norm(modules["norm0"])
            or guards.unsupported_convolution(modules["conv0"], size=stem.KERNEL, stride=stem.STRIDE)
        )

    def _not_fused(self, features: Tensor) -> str | None:
        dtype = guards.computing_dtype(features.device, self._stem()[0].weight.dtype)
        return _unsupported_kernels(features.device, dtype, features.ndim - 2)

    def _unsupported_input(self, features: Tensor) -> str | None:
        if features.ndim != 2 + self.config.dims:
            return f"the input is not (N, C, {AXES[self.config.dims]})"
        _, parameters = self._stem_operation(features)
        return guards.unsupported_input(features, parameters, casts=True)

    def _runs_natively(self, features: Tensor) -> bool:
        return stem.cpu_executor(features, *self._stem_operation(features)) == "native"

    def _stem(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """Convolution and norm of the stem, which have been checked."""
        return cast(nn.Conv2d, self.features.conv0), cast(nn.BatchNorm2d, self.features.norm0)

    def _stem_operation(self, images: Tensor) -> tuple[stem.StemPlan, stem.StemParameters]:
        """What the stem's operation is given."""
        conv0, norm0 = self._stem()
        dtype = guards.computing_dtype(images.device, conv0.weight.dtype)
        plan = stem.StemPlan(norm0.eps, keep_convolved=not self.recompute, dtype=dtype)
        return plan, stem.StemParameters(conv0.weight, norm0.weight, norm0.bias)


_LINEAR: dict[type[nn.Module], type[nn.Module]] = {
    DenseBlock: MemoryEfficientDenseBlock,
    Transition: MemoryEfficientTransition,
    DenseNet: MemoryEfficientDenseNet,
    BasicBlock: MemoryEfficientBasicBlock,
    BottleneckBlock: MemoryEfficientBottleneckBlock,
    ResNet: MemoryEfficientResNet,
    RDNetBlock: MemoryEfficientRDNetBlock,
    RDNet: MemoryEfficientRDNet,
}


def set_block_execution(model: nn.Module, policy: ExecutionPolicy, *, warn: bool = True) -> None:
    """Choose how the model's blocks and transitions run in training.

    Args:
        model: Parts that are other modules, or whose blocks are, run as they do.
        policy: `"auto"` or one of `BLOCK_EXECUTIONS`.
        warn: Whether to say where a policy that is asked for will not be applied, and why.

    Raises:
        UserError: For an unknown policy.
    """
    policies = ("auto", *BLOCK_EXECUTIONS)
    if policy not in policies:
        near = near_matches(policy, policies)
        raise UserError(f'unknown block execution "{policy}"{near}; it is one of {", ".join(policies)}')
    for module in model.modules():
        for plain, linear in _LINEAR.items():
            if type(module) in (plain, linear):
                module.__class__ = plain if policy == "plain" else linear
    networks = [module for module in model.modules() if isinstance(module, SwitchedNetwork)]
    in_networks = {id(module) for network in networks for module in network.modules()}
    for module in model.modules():
        if isinstance(module, SwitchedModule):
            module.recompute, module.automatic = policy == "linear-recompute", policy == "auto"
            module.has_run, module.executor, module.measured = False, None, None
            module.why_plain = NOT_MEASURED if id(module) in in_networks else _NO_MEASURER
    if warn and policy.startswith("linear"):
        _warn_of_plain_parts(model, policy)


def _warn_of_plain_parts(model: nn.Module, policy: str) -> None:
    """Say which parts will run plainly although something else was asked for, and why."""
    report = execution_report(model)
    if not report:
        logger.warning(
            "warning: block_execution=%s: not applied: there are no blocks of this package in %s",
            policy,
            type(model).__name__,
        )
    reasons: dict[str, list[str]] = {}
    for path, how in report.items():
        reason = how.removeprefix("plain: ")
        # In eval mode nothing is known yet.
        if how.startswith("plain") and reason != "eval mode":
            reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        logger.warning(
            "warning: block_execution=%s: not applied to %s, which will run plainly: %s",
            policy,
            listed(paths, 3),
            reason,
        )


def execution_report(model: nn.Module) -> dict[str, str]:
    """How each block and transition ran last, or would run now: its policy, or "plain: " and why.

    The layers of a dense block are listed where they run by themselves between operations.
    """
    report: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, RDNet):
            continue  # No part of it is an operation of its own.
        if isinstance(module, DenseNet | ResNet):
            path = f"{path}.stem".removeprefix(".")
            if not module.config.has_simple_stem:
                continue
        if isinstance(module, tuple(_LINEAR)):
            report[path] = module.policy if isinstance(module, SwitchedModule) else "plain"
        if isinstance(module, DividedBlock):
            report |= {f"{path}.{name}": f"plain: {why}" for name, why in module.layers_apart().items()}
    return report


def _unsupported_kernels(device: torch.device, dtype: torch.dtype, dims: int) -> str | None:
    """`unsupported_kernels`, which a compiler must not look into."""
    if torch.compiler.is_compiling():
        from skipnets.ops import operators

        return operators.unsupported_kernels(device, dtype, dims=dims)
    return unsupported_kernels(device, dtype, dims=dims)


def _unsupported_block(features: Tensor, layers: Sequence[LayerParameters]) -> str | None:
    """`unsupported_block`, which a compiler must not look into."""
    widths, dims = growth_widths(layers), features.ndim - 2
    if torch.compiler.is_compiling():
        from skipnets.ops import operators

        return operators.unsupported_block(features.device, features.dtype, widths=widths, dims=dims)
    return unsupported_block(features.device, features.dtype, widths=widths, dims=dims)


def _divided(block: nn.Module) -> list[_DensePart]:
    """A dense block's layers, as many together as can run as one operation."""
    parts: list[_DensePart] = []
    for name, layer in every_child(block):
        reason = _unsupported_layer(layer)
        if reason is not None:
            parts.append(_DensePart({name: layer}, reason))
        elif parts and parts[-1].is_followed_by(layer):
            parts[-1].layers[name] = layer
            parts[-1].modules.append(_LayerParts.of(layer))
        else:
            parts.append(_DensePart({name: layer}, modules=[_LayerParts.of(layer)]))
    return parts


def _unsupported_layer(layer: nn.Module) -> str | None:
    """Why a dense layer cannot be part of an operation, or None."""
    if type(layer) not in (DenseLayer, BasicDenseLayer):
        return f"it is a {type(layer).__name__}, none of the block's own layers"
    if reason := guards.unsupported_hooks(layer.modules()):
        return reason
    bottleneck = isinstance(layer, DenseLayer)
    names = ["norm1", "relu1", "conv1", *(["norm2", "relu2", "conv2"] if bottleneck else [])]
    if [name for name, _ in layer.named_children()] != [*names, "dropout", "drop_path"]:
        return f"it has other modules than {', '.join(names)}, dropout and drop_path"
    for number in (1, 2) if bottleneck else (1,):
        relu, norm = layer.get_submodule(f"relu{number}"), layer.get_submodule(f"norm{number}")
        if reason := guards.unsupported_activation(relu, norm):
            return reason
    if reason := _unsupported_dropout(layer):
        return reason
    parts = _LayerParts.of(layer)
    reason = guards.unsupported_norm(parts.norm1)
    reason = reason or guards.unsupported_convolution(parts.conv1, size=1 if bottleneck else 3)
    if parts.norm2 is not None and parts.conv2 is not None:
        reason = reason or guards.unsupported_norm(parts.norm2)
        reason = reason or guards.unsupported_convolution(parts.conv2, size=3)
    return reason


def _unsupported_dropout(layer: nn.Module) -> str | None:
    """Which dropout of a dense layer would be left out, or None."""
    if not isinstance(layer, DenseLayer | BasicDenseLayer):
        return None
    if type(layer.dropout) is not nn.Dropout or layer.dropout.p > 0:
        return "dropout"
    if type(layer.drop_path) is not StochasticDepth or layer.drop_path.p > 0:
        return "stochastic depth"
    return None


def _pooling(pool: nn.Module) -> tuple[object, ...]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
    return type(pool), *(getattr(pool, name, None) for name in names)


def _count(features: Tensor) -> int:
    """Values of one channel."""
    return features.shape[0] * features.shape[2:].numel()


def _attach_statistics(features: Tensor, statistics: Statistics) -> None:
    """Let the statistics travel with the tensor that they describe.

    As an attribute they live as long as it does, belong to no other thread, and are lost, not wrong, when a
    hook puts another tensor in its place. The version shows whether it was written to since.
    """
    features.block_statistics = (features._version, statistics)  # type: ignore[attr-defined]


def _attached_statistics(features: Tensor) -> Statistics | None:
    """The statistics that came with a tensor, unless it has changed since."""
    version, statistics = getattr(features, "block_statistics", (None, None))
    return statistics if version == features._version else None
