"""A network's tensors, checked against its graph, and the arithmetic of its batch norms in double precision.

Shapes: O output channels, I input channels, K kernel size, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets_engine.errors import TensorsDoNotFitError
from skipnets_engine.graph import Graph

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """scale · x + shift for every channel."""

    scale: Array
    shift: Array

    def then(self, other: Affine) -> Affine:
        """This one first, the other behind it."""
        with np.errstate(all="ignore"):  # `single` refuses what is not finite
            return Affine(other.scale * self.scale, other.scale * self.shift + other.shift)

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """One that changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))


class Tensors:
    """The tensors of a graph, by their state-dict names.

    Args:
        graph: Checked.
        tensors: Exactly its state dict; `num_batches_tracked` may be missing.

    Raises:
        TensorsDoNotFitError: If tensors are missing, left over, of a wrong shape or type or not finite.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors: dict[str, NDArray[np.float32]] = {}
        uncounted = set()
        for operation in graph.operations:
            for name, shape in tensor_shapes(operation).items():
                self._tensors[name] = _checked(name, shape, tensors)
            if operation.kind == "norm" and operation.norm == "batch":
                variance = f"{operation.name}.running_var"
                if (self._tensors[variance] < 0).any():
                    raise TensorsDoNotFitError(f"tensor {variance} has negative variances")
                uncounted.add(f"{operation.name}.num_batches_tracked")
        left = [name for name in tensors if name not in self._tensors and name not in uncounted]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise TensorsDoNotFitError(
                f"the tensors do not fit the architecture: left over: {', '.join(map(str, left[:3]))}{more}"
            )

    def double(self, name: str) -> Array:
        """A tensor in double precision."""
        return self._tensors[name].astype(np.float64)

    def standardized(self, name: str, eps: float) -> Array:
        """Weights with mean 0 and variance 1 for each output channel."""
        weight = self.double(name)
        axes = tuple(range(1, weight.ndim))
        deviation = np.sqrt(weight.var(axis=axes, keepdims=True) + eps)
        return np.asarray((weight - weight.mean(axis=axes, keepdims=True)) / deviation)

    def affine(self, name: str) -> Affine:
        """Weight and bias of a norm."""
        return Affine(self.double(f"{name}.weight"), self.double(f"{name}.bias"))

    def scale(self, name: str) -> Affine:
        """A factor for each channel."""
        factors = self.double(name)
        return Affine(factors, np.zeros_like(factors))

    def norm(self, name: str, eps: float) -> Affine:
        """A batch norm: γ (x − μ) / √(σ² + ε) + β."""
        scale = self.double(f"{name}.weight") / np.sqrt(self.double(f"{name}.running_var") + eps)
        return Affine(scale, self.double(f"{name}.bias") - self.double(f"{name}.running_mean") * scale)


def single(name: str, numbers: Array) -> NDArray[np.float32]:
    """Single precision, once more checked: folding may overflow where each tensor was finite."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(numbers, dtype=np.float32)
    if not np.isfinite(result).all():
        raise TensorsDoNotFitError(f"{name}: weights times norm are not finite in single precision")
    return result


def tensor_shapes(operation: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an operation's tensors that the engine reads."""
    name = operation.name
    if operation.kind in ("convolution", "standardized convolution"):
        kernel, outputs = operation.kernel, operation.out_channels
        weight = (outputs, operation.in_channels // operation.groups, kernel, kernel)
        return {f"{name}.weight": weight} | ({f"{name}.bias": (outputs,)} if operation.bias else {})
    if operation.kind in ("linear", "pointwise linear"):
        outputs = operation.out_features
        window = (1, 1) if operation.kind == "pointwise linear" else ()
        return {f"{name}.weight": (outputs, operation.in_features, *window), f"{name}.bias": (outputs,)}
    if operation.kind == "norm":
        more = {"batch": ["running_mean", "running_var"], "evonorm-s0": ["v"]}
        parts = ["weight", "bias", *more.get(operation.norm, [])]
        return {f"{name}.{part}": (operation.channels,) for part in parts}
    if operation.kind == "affine":
        return {f"{name}.{part}": (operation.channels,) for part in ("weight", "bias")}
    if operation.kind == "threshold":
        return {f"{name}.tau": (operation.channels,)}
    if operation.kind == "channel convolution":
        return {f"{name}.weight": (1, 1, operation.kernel)}
    if operation.kind == "scale":
        return {name: (operation.channels,)}
    return {}


def _checked(name: str, shape: tuple[int, ...], tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    if name not in tensors:
        raise TensorsDoNotFitError(f"the tensors do not fit the architecture: missing: {name}")
    array = np.asarray(tensors[name])
    if array.shape != shape:
        raise TensorsDoNotFitError(f"tensor {name} has shape {array.shape}, the architecture needs {shape}")
    if array.dtype != np.float32:
        raise TensorsDoNotFitError(f"tensor {name} is {array.dtype}, it should be float32")
    if not np.isfinite(array).all():
        raise TensorsDoNotFitError(
            f"tensor {name} is not finite: the training diverged or the file is damaged"
        )
    return array
