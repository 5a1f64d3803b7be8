"""Residual blocks that train as one operation (`skipnets.ops.residual_block`), and networks of them.

`skipnets.models.block_execution` gives blocks and networks these classes and takes them away again.

Shapes: N batch, C channels, H height, W width, S stride. Maps (N, C, H, W) are (N, C, L) of signals and
    (N, C, D, H, W) of volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.axes import AXES
from skipnets.models.resnet import BasicBlock, BottleneckBlock, PadShortcut, ResNet
from skipnets.models.switched_module import NATIVE_KERNELS, SwitchedModule, SwitchedNetwork
from skipnets.ops import guards
from skipnets.ops.batch_norm import update_all_running_statistics, update_running_statistics
from skipnets.ops.residual_block import NormedConvolution, ResidualBlockPlan, executor, residual_block
from skipnets.ops.stem import StemParameters, StemPlan, cpu_executor, stem

_BRANCHES = {BasicBlock: 2, BottleneckBlock: 3}  # convolutions


class _Pair(NamedTuple):
    """A convolution and the norm behind it."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d

    def parameters(self) -> NormedConvolution:
        """The tensors, as they are now."""
        return NormedConvolution(self.convolution.weight, self.norm.weight, self.norm.bias)


class _CheckedBlock(NamedTuple):
    """A block that can run as one operation, as it was when that was checked."""

    structure: guards.Structure
    pairs: list[_Pair]
    plan: ResidualBlockPlan


# The check takes as long as the kernels of a small block. Not an attribute, as copies would take it along.
_CHECKED: WeakKeyDictionary[nn.Module, _CheckedBlock] = WeakKeyDictionary()


class _MemoryEfficientBlock(SwitchedModule):
    """What basic and bottleneck blocks share."""

    has_operator = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        if self.unsupported_reason(x) is not None:
            return cast(Tensor, super().forward(x))
        checked = _CHECKED[self]
        way: Literal["native", "pytorch"] = "native" if self.executor == NATIVE_KERNELS else "pytorch"
        result = residual_block(x, checked.plan, [pair.parameters() for pair in checked.pairs], way)
        norms = [pair.norm for pair in checked.pairs]
        if len(set(result.counts)) == 1:
            update_all_running_statistics(norms, result.statistics, result.counts[0])
        else:
            for each in zip(norms, result.statistics, result.counts, strict=True):
                update_running_statistics(*each)
        return result.y

    def unsupported_structure(self) -> str | None:
        """Why the block as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        checked = _CHECKED.get(self)
        if checked is not None and checked.structure.unchanged():
            return None
        reason = _unsupported_layers(self)
        if reason is None:
            _CHECKED[self] = _CheckedBlock(guards.Structure(self), _pairs(self), _plan(self))
        return reason

    def _unsupported_input(self, features: Tensor) -> str | None:
        checked = _CHECKED[self]
        if features.ndim != 2 + len(checked.pairs[0].convolution.kernel_size):
            return "the input has another number of axes than the kernels"
        parameters = [tensor for pair in checked.pairs for tensor in pair.parameters()]
        reason = guards.unsupported_input(features, parameters)
        if reason is None and features.dtype != parameters[0].dtype:
            reason = "autocast is on"
        if reason is None and min(shape.rows for shape in checked.plan.shapes(features)) < 2:
            reason = "there is one value a channel: no batch statistics"
        return reason

    def _runs_natively(self, features: Tensor) -> bool:
        checked = _CHECKED[self]
        return executor(features, checked.plan, [pair.parameters() for pair in checked.pairs]) == "native"


class MemoryEfficientBasicBlock(_MemoryEfficientBlock, BasicBlock):
    """A basic block that trains as one operation."""


class MemoryEfficientBottleneckBlock(_MemoryEfficientBlock, BottleneckBlock):
    """A bottleneck block that trains as one operation."""


class MemoryEfficientResNet(SwitchedNetwork, ResNet):
    """A ResNet whose stem trains as one operation on a CPU; its blocks are switched one by one.

    `forward_intermediates`, which shows a map from within the stem, runs its layers.
    """

    has_operator = False

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map (N, num_features, h, w)."""
        x = self._checked(x)
        if self.unsupported_reason(x) is not None:
            return self._run_stages(x)
        maps, statistics, rows = stem(x, *self._stem_operation())
        update_running_statistics(cast(nn.BatchNorm2d, self.bn1), statistics, rows)
        for _, stage in islice(self.named_stages(), 4 if self.config.has_stem_pool else 3, None):
            maps = stage(maps)
        return maps

    def unsupported_structure(self) -> str | None:
        """Why the stem as it is now cannot be run as one operation, or None."""
        if not self.training:
            return "eval mode"
        names = ("conv1", "bn1", "relu", *(["maxpool"] if self.config.has_stem_pool else []))
        modules = dict(islice(self.named_stages(), len(names)))
        if tuple(modules) != names:
            return f"it has other modules than {', '.join(names)}"
        if reason := guards.unsupported_activation(self.relu, self.bn1):
            return reason
        size = 7 if getattr(self.conv1, "kernel_size", (3,))[0] == 7 else 3
        stride = _stride(self.conv1)
        return (
            guards.unsupported_hooks(modules.values())
            or guards.unsupported_convolution(self.conv1, size, stride=stride)
            or guards.unsupported_norm(self.bn1)
            or (guards.unsupported_max_pooling(self.maxpool) if self.config.has_stem_pool else None)
        )

    def _unsupported_input(self, features: Tensor) -> str | None:
        if features.ndim != 2 + self.config.dims:
            return f"the input is not (N, C, {AXES[self.config.dims]})"
        if features.device.type != "cpu":
            return "the stem is one operation on CPUs alone"
        _, parameters = self._stem_operation()
        reason = guards.unsupported_input(features, parameters)
        if reason is None and features.dtype != parameters.weight.dtype:
            reason = "autocast is on"
        return reason

    def _runs_natively(self, features: Tensor) -> bool:
        return cpu_executor(features, *self._stem_operation()) == "native"

    def _stem_operation(self) -> tuple[StemPlan, StemParameters]:
        """What the stem's operation is given; the stem has been checked."""
        convolution, norm = cast(nn.Conv2d, self.conv1), cast(nn.BatchNorm2d, self.bn1)
        plan = StemPlan(
            norm.eps,
            keep_convolved=True,
            dtype=convolution.weight.dtype,
            stride=convolution.stride[0],
            pools=self.config.has_stem_pool,
        )
        return plan, StemParameters(convolution.weight, norm.weight, norm.bias)


def _children(block: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Convolutions, norms and ReLUs of a block's branch."""
    numbers = range(1, _branch(block) + 1)
    convolutions, norms, relus = (
        [block.get_submodule(f"{name}{number}") for number in numbers] for name in ("conv", "bn", "relu")
    )
    return convolutions, norms, relus


def _branch(block: nn.Module) -> int:
    return next(count for kind, count in _BRANCHES.items() if isinstance(block, kind))


def _pairs(block: nn.Module) -> list[_Pair]:
    """The branch's, in order, and that of the projection; of a block that has been checked."""
    convolutions, norms, _ = _children(block)
    if isinstance(block.downsample, nn.Sequential):
        convolutions.append(block.downsample[0])
        norms.append(block.downsample[1])
    return [_Pair(*each) for each in zip(convolutions, norms, strict=True)]  # type: ignore[arg-type]


def _plan(block: nn.Module) -> ResidualBlockPlan:
    """Of a block that has been checked."""
    pairs, shortcut = _pairs(block), block.downsample
    return ResidualBlockPlan(
        strides=tuple(pair.convolution.stride[0] for pair in pairs),
        eps=tuple(pair.norm.eps for pair in pairs),
        projects=isinstance(shortcut, nn.Sequential),
        zeros_before=shortcut.padding[-2] if isinstance(shortcut, PadShortcut) else 0,
    )


def _unsupported_layers(block: nn.Module) -> str | None:
    """Why a block's layers cannot be run as one operation, or None."""
    count = _branch(block)
    numbers = range(1, count + 1)
    names = [name for number in numbers for name in (f"conv{number}", f"bn{number}", f"relu{number}")]
    present = dict(block.named_children())
    if set(present) - {"downsample"} != {*names, "dropout", "drop_path"}:
        return f"it has other modules than {', '.join(names)}, dropout, drop_path and downsample"
    if reason := guards.unsupported_hooks(module for module in block.modules() if module is not block):
        return reason
    convolutions, norms, relus = _children(block)
    for relu, norm in zip(relus, norms, strict=True):
        if reason := guards.unsupported_activation(relu, norm):
            return reason
    dropout, drop_path = cast(nn.Dropout, block.dropout), cast(StochasticDepth, block.drop_path)
    if type(dropout) is not nn.Dropout or dropout.p > 0:
        return "dropout"
    if type(drop_path) is not StochasticDepth or drop_path.p > 0:
        return "stochastic depth"
    sizes = (3, 3) if count == 2 else (1, 3, 1)
    return next(
        filter(None, (*_unsupported_pairs(convolutions, norms, sizes), _unsupported_shortcut(block))), None
    )


def _stride(convolution: nn.Module) -> int:
    """2 for a stride of 2 along every axis, else 1."""
    strides = getattr(convolution, "stride", (1,))
    return 2 if set(strides) == {2} else 1


def _unsupported_pairs(
    convolutions: list[nn.Module], norms: list[nn.Module], sizes: tuple[int, ...]
) -> Iterator[str | None]:
    for convolution, norm, size in zip(convolutions, norms, sizes, strict=True):
        yield guards.unsupported_convolution(convolution, size, stride=_stride(convolution))
        yield guards.unsupported_norm(norm)


def _unsupported_shortcut(block: nn.Module) -> str | None:
    """Why a shortcut cannot be part of the operation, or None; the branch has been checked."""
    pairs, shortcut = _children(block)[0], block.downsample
    first, last = cast(nn.Conv2d, pairs[0]), cast(nn.Conv2d, pairs[-1])
    stride = max(_stride(each) for each in pairs)
    added = last.out_channels - first.in_channels
    if sum(_stride(each) == 2 for each in pairs) > 1:
        return "two of its convolutions have a stride"
    if shortcut is None:
        return None if stride == 1 and added == 0 else "its shortcut does not fit its branch"
    if type(shortcut) is PadShortcut:
        *around, before, after = shortcut.padding
        fits = shortcut.stride == stride and before + after == added
        return None if fits and not any(around) else "its shortcut does not fit its branch"
    if type(shortcut) is not nn.Sequential or len(shortcut) != 2:
        return "its shortcut is not a convolution with a norm"
    reason = guards.unsupported_convolution(shortcut[0], 1, stride=stride)
    return reason or guards.unsupported_norm(shortcut[1])
