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
        return x @ weight.flatten(1).t()
    return as_matrix(F.conv2d(as_maps(x, shape), weight, padding=1))


def convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor, shape: MapShape) -> tuple[Tensor, Tensor]:
    """Gradients of `convolve`: (m, K) → those of x (m, C) and of the weights (K, C, s, s)."""
    if _is_pointwise(weight):
        return gradient @ weight.flatten(1), (gradient.t() @ x).view_as(weight)
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
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
    return as_matrix(x_gradient), weight_gradient


def _is_pointwise(weight: Tensor) -> bool:
    return weight.shape[2:] == (1, 1)
