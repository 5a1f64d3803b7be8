"""The convolutions of dense layers and transitions, on matrices of positions by channels.

Shapes: n images of H×W in m = n·H·W rows, C input channels, K output channels; the kernel is s×s, 1 or 3, and
    the padding (s − 1)/2. With s = 1 it is a matrix product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.chunks import MapShape, as_maps, as_matrix


def convolve(x: Tensor, weight: Tensor, shape: MapShape) -> Tensor:
    """Convolution: (m, C) with weights (K, C, s, s) → (m, K)."""
    if _is_pointwise(weight):
        return _multiply(x, weight, shape)
    return as_matrix(F.conv2d(as_maps(x, shape), weight, padding=1))


def convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, shape: MapShape, *, weight_gradient: Tensor
) -> Tensor:
    """The gradient of the input of `convolve`: (m, K) → (m, C).

    That of the weights (K, C, s, s) is added to `weight_gradient`, in its type.
    """
    if _is_pointwise(weight):
        _add_product(weight_gradient.flatten(1), gradient.t(), x)
        return _multiply(gradient, weight.transpose(0, 1), shape)
    x_gradient, chunk_weight_gradient, _ = torch.ops.aten.convolution_backward(
        as_maps(gradient, shape),
        as_maps(x, shape),
        weight,
        bias_sizes=None,
        stride=[1, 1],
        padding=[1, 1],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[True, True, False],
    )
    weight_gradient += chunk_weight_gradient
    return as_matrix(x_gradient)


def _multiply(x: Tensor, weight: Tensor, shape: MapShape) -> Tensor:
    """The matrix product with a 1×1 kernel: (m, C) with (K, C, 1, 1) → (m, K).

    In float32 on a CPU the library's convolution is up to a quarter faster than its matrix product. It takes
    each row of a map for an image: for fewer than 16 images, one thread gets a slow kernel.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        map_rows = MapShape(shape.images * shape.height, 1, shape.width)
        return as_matrix(F.conv2d(as_maps(x, map_rows), weight))
    return x @ weight.flatten(1).t()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a view, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _is_pointwise(weight: Tensor) -> bool:
    return weight.shape[2:] == (1, 1)
