"""Convolutions of dense layers and transitions on matrices (positions, channels).

To a 1×1 kernel it does not matter which positions form an image. Which way of computing it is fastest
depends on the processor, and by factors: it is measured (`pointwise_ways`).

Shapes: n images of H×W in m = n·H·W rows, C input channels, K output channels; the kernel is s×s, 1 or 3, and
    the padding (s − 1)/2. Signals and volumes have one axis less or more, and so have their kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.choices import CHOICES
from skipnets.ops.chunks import MapShape, as_maps, as_matrix

_MANY_IMAGES = 16
CONVOLVE: Mapping[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""The convolution by the number of spatial axes."""

Way = Literal["columns", "maps", "product"]
"""How a 1×1 convolution is computed: by the library's convolution, of the rows read as at least 16 equal
columns or of the images as they are, or as a matrix product."""


class PointwiseWays(NamedTuple):
    """How the 1×1 convolutions of one operation are computed, forward and backward."""

    forward: Way = "columns"
    backward: Way = "columns"


DEFAULT_WAYS = PointwiseWays()


def pointwise_ways(
    channels: int, outputs: int, shape: MapShape, rows: int, device: torch.device, dtype: torch.dtype
) -> PointwiseWays:
    """The fastest ways on this machine, measured the first time; the default where speed is no concern.

    Args:
        channels: C, of a typical layer.
        outputs: K.
        shape: Of the maps.
        rows: Of a chunk.
        device: Where.
        dtype: Computed in.
    """
    if device.type != "cpu" or dtype != torch.float32:
        return DEFAULT_WAYS

    @functools.cache
    def operands() -> tuple[Tensor, Tensor, Tensor]:
        """What is only made if something has to be measured: x, weights, gradient."""
        sizes = ((rows, channels), (outputs, channels, *[1] * len(shape.sides)), (rows, outputs))
        x, weight, gradient = (torch.ones(size, dtype=dtype, device=device) for size in sizes)
        return x, weight, gradient

    def forward(way: Way) -> Tensor:
        x, weight, _ = operands()
        return convolve(x, weight, shape, way)

    def backward(way: Way) -> Tensor:
        x, weight, gradient = operands()
        return convolve_backward(gradient, x, weight, shape, way, weight_gradient=torch.zeros_like(weight))

    problem = f"1x1 convolution {channels}>{outputs} {'x'.join(map(str, shape.sides))}"
    chosen = [
        CHOICES.choose(f"{problem} {name}", {way: functools.partial(run, way) for way in get_args(Way)})
        for name, run in (("forward", forward), ("backward", backward))
    ]
    return PointwiseWays(*cast(list[Way], chosen))


def convolve(x: Tensor, weight: Tensor, shape: MapShape, way: Way = "columns") -> Tensor:
    """Convolution: (m, C) with weights (K, C, s, s) → (m, K)."""
    if way == "product" and _is_pointwise(weight):
        return x @ weight.flatten(1).t()
    extent, weight = _extent(len(x), weight, shape, way)
    maps: Tensor = CONVOLVE[len(extent.sides)](as_maps(x, extent), weight, padding=weight.shape[-1] // 2)
    return as_matrix(maps).contiguous()  # Maps of a single signal or volume may be a transposed view.


def convolve_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    shape: MapShape,
    way: Way = "columns",
    *,
    weight_gradient: Tensor,
) -> Tensor:
    """The gradient of the input of `convolve`: (m, K) → (m, C).

    That of the weights (K, C, s, s) is added to `weight_gradient`, in its type.
    """
    if way == "product" and _is_pointwise(weight):
        weight_gradient.flatten(1).addmm_(gradient.t(), x)
        return gradient @ weight.flatten(1)
    extent, weight = _extent(len(x), weight, shape, way)
    x_gradient, chunk_weight_gradient = convolution_gradients(
        as_maps(gradient, extent), as_maps(x, extent), weight, padding=weight.shape[-1] // 2
    )
    weight_gradient += chunk_weight_gradient.view(weight_gradient.shape)
    assert x_gradient is not None
    return as_matrix(x_gradient).contiguous()


def convolution_gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int,
    input_gradient: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """The gradients of a convolution's input, if wanted, and of its weights.

    Args:
        gradient: (n, K, …) of the output.
        x: (n, C, …).
        weight: (K, C, s, …).
        stride: Along every axis.
        padding: Along every axis.
        input_gradient: Whether that of x is wanted.
    """
    dims = x.ndim - 2
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        bias_sizes=None,
        stride=[stride] * dims,
        padding=[padding] * dims,
        dilation=[1] * dims,
        transposed=False,
        output_padding=[0] * dims,
        groups=1,
        output_mask=[input_gradient, True, False],
    )
    return x_gradient, weight_gradient


def _is_pointwise(weight: Tensor) -> bool:
    return weight.shape[2:].numel() == 1


def _extent(rows: int, weight: Tensor, shape: MapShape, way: Way) -> tuple[MapShape, Tensor]:
    """The shape of the maps as which the rows are convolved, and the weights for them."""
    if not _is_pointwise(weight) or way == "maps":
        return shape, weight
    images = next(count for count in range(min(_MANY_IMAGES, rows), rows + 1) if rows % count == 0)
    columns = weight if weight.ndim == 4 else weight.view(*weight.shape[:2], 1, 1)
    return MapShape(images, (rows // images, 1)), columns
