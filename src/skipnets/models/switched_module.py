"""Modules that can train as one operation, which `skipnets.models.block_execution` switches.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skipnets.errors import one_line
from skipnets.models.backbone import Backbone
from skipnets.models.execution_choice import fastest_execution
from skipnets.models.graph import BlockExecution
from skipnets.ops import guards
from skipnets.ops.triton import slower_launches

logger = logging.getLogger("skipnets")

_FUSED, NATIVE_KERNELS = "fused kernels", "native kernels"
NOT_MEASURED = "nothing has been measured"


class SwitchedModule(nn.Module):
    """What is known about the execution of a module that can run as one operation.

    Attributes:
        has_operator: Whether a compiler can take the operation into a graph, as `skipnets.ops.operators`.
        recompute: Whether the operation repeats in the backward pass what it could keep.
        automatic: Whether it runs only where it is faster than the layers; on a CPU that is measured.
        measured: What was the fastest on this machine; None as long as nothing has been measured.
        why_plain: What the report says where `measured` keeps it from running on a CPU.
        has_run: Whether `reason` and `executor` are those of a forward pass.
        reason: Why the last one was plain.
        executor: What ran the operation, for the report.
    """

    has_operator: ClassVar[bool] = True
    recompute: bool = False
    automatic: bool = False
    measured: BlockExecution | None = None
    why_plain: str = NOT_MEASURED
    has_run: bool = False
    reason: str | None = None
    executor: str | None = None

    @property
    def policy(self) -> str:
        """What the report says of it: the policy, or "plain: " and the reason."""
        reason = self.reason if self.has_run else self.unsupported_structure()
        if reason is not None:
            return f"plain: {reason}"
        policy = "linear-recompute" if self.recompute else "linear"
        if self.executor is None:
            return policy
        slower = slower_launches() if self.executor == _FUSED else None
        return f"{policy}: {self.executor}" + (f", but {slower}" if slower else "")

    def unsupported_reason(self, features: Tensor) -> str | None:
        """Why this forward pass has to be plain, or None; remembered for the report."""
        if torch.compiler.is_compiling():  # It would have to follow what is remembered.
            if not self.has_operator:
                return "the model is being compiled"
            if features.ndim != 4:
                return "a compiler has operators for images alone"
            return (
                guards.unsupported_transform()
                or self.unsupported_structure()
                or self._unsupported_input(features)
                or self._slow(features)
            )
        self.has_run = True
        self.reason = (
            guards.unsupported_tracing(features)
            or self.unsupported_structure()
            or self._unsupported_input(features)
            or self._slow(features)
        )
        if self.reason is None:
            self.executor = self._executor(features)
        return self.reason

    def _slow(self, features: Tensor) -> str | None:
        """Why a plain run is faster on this device, or None."""
        if not self.automatic:
            return None
        if features.device.type == "cpu":
            return self.why_plain if self.measured in (None, "plain") else None
        return self._not_fused(features)

    def _executor(self, features: Tensor) -> str | None:
        """What runs it, for the report; None for the operators of PyTorch where there is nothing else."""
        if features.device.type == "cpu":
            return NATIVE_KERNELS if self._runs_natively(features) else None
        reason = self._not_fused(features)
        return _FUSED if reason is None else f"PyTorch's operators, as {reason}"

    def _runs_natively(self, features: Tensor) -> bool:  # noqa: ARG002 — a block's depends on them
        """Whether native code runs this module on the CPU."""
        return False

    def _not_fused(self, features: Tensor) -> str | None:  # noqa: ARG002 — a block's depends on them
        """Why there are no fused kernels for this module, or None."""
        return "there are no fused kernels for it"

    def unsupported_structure(self) -> str | None:
        """Why the module as it is now cannot be run as one operation, or None."""
        raise NotImplementedError

    def _unsupported_input(self, features: Tensor) -> str | None:
        """Why this input cannot be, or None; the structure has been checked.

        Tensors are asked for by their names: the modules that `nn.DataParallel` makes have no `parameters()`.
        """
        raise NotImplementedError


@dataclass
class Part:
    """Neighboring layers of a dense block that run as one operation; or a layer that runs by itself.

    Attributes:
        layers: By name, in order.
        reason: Why a layer runs by itself.
    """

    layers: dict[str, nn.Module]
    reason: str | None = None


class DividedBlock(SwitchedModule):
    """A dense block that trains as one operation, or as several where some layers run by themselves."""

    def layers_apart(self) -> dict[str, str]:
        """Names of the layers that run by themselves between operations, or would now, and why."""
        if self.policy.startswith("plain"):
            return {}
        return {name: part.reason for part in self._parts() if part.reason for name in part.layers}

    def _run_parts(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → the features with those of all layers; its input has been checked."""
        for place, part in enumerate(self._parts()):
            if part.reason is None and (place == 0 or self._unsupported_by(part, features) is None):
                features = self._run_as_one(part, features)
            else:
                for layer in part.layers.values():
                    features = torch.cat([features, layer(features)], dim=1)
        return features

    def _first_operation(self) -> Part:
        return next(part for part in self._parts() if part.reason is None)

    def _unsupported_input(self, features: Tensor) -> str | None:
        return self._unsupported_by(self._first_operation(), features)

    def _parts(self) -> Sequence[Part]:
        """What runs one after the other, of a block that has been checked."""
        raise NotImplementedError

    def _run_as_one(self, part: Part, features: Tensor) -> Tensor:
        """Run layers as one operation."""
        raise NotImplementedError

    def _unsupported_by(self, part: Part, features: Tensor) -> str | None:
        """Why layers cannot run as one operation on these features, or None."""
        raise NotImplementedError


class SwitchedNetwork(SwitchedModule, Backbone[Any]):
    """A network that measures, with "auto" on a CPU, what is fastest for its switched modules.

    It does so in its first forward pass in training, whose images show for which batches.
    """

    def _checked(self, x: Tensor) -> Tensor:
        """As `Backbone._checked`; measures if that has not been done."""
        x = super()._checked(x)
        if self.automatic and self.measured is None and not torch.compiler.is_compiling():
            measure_network(self, x)
        return x


def measure_network(network: Backbone[Any], x: Tensor) -> None:
    """Find out which execution trains a network fastest on the CPU, and set its switched modules to it.

    Where that fails, as it may with a user's own layers, they run layer by layer, and the report says why.

    Args:
        network: Its structure and weights are not changed.
        x: (N, C, H, W) images; what is measured is for batches like this one.
    """
    if not network.training or not torch.is_grad_enabled():
        return
    if guards.unsupported_tracing(x) or guards.unsupported_hooks(()) or x.device.type != "cpu":
        return
    last = any(parameter.ndim == 4 and not parameter.is_contiguous() for parameter in network.parameters())
    policy: BlockExecution = "plain"
    why_plain = "the fastest on this machine"
    try:
        policy = fastest_execution(network, tuple(x.shape), channels_last=last).policy
    except Exception as error:
        why_plain = f"measuring what is fastest has failed ({one_line(error)})"
        logger.warning("warning: block_execution=auto: not applied: %s", why_plain)
    for module in network.modules():
        if isinstance(module, SwitchedModule):
            module.measured, module.why_plain = policy, why_plain
            module.recompute = policy == "linear-recompute"
