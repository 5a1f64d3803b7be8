"""The two convolutions of a dense layer, on matrices of positions by channels.

Shapes: n images of H×W in m = n·H·W rows, C input channels, K output channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.chunks import MapShape, as_maps, as_matrix


def convolve_3x3(x: Tensor, weight: Tensor, shape: MapShape) -> Tensor:
    """3×3 convolution with padding 1: (m, C) with weights (K, C, 3, 3) → (m, K)."""
    return as_matrix(F.conv2d(as_maps(x, shape), weight, padding=1))


def convolve_3x3_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, shape: MapShape
) -> tuple[Tensor, Tensor]:
    """Gradients of `convolve_3x3`: (m, K) → those of x (m, C) and of the weights (K, C, 3, 3)."""
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


def as_pointwise(weight: Tensor) -> Tensor:
    """The weights of a 1×1 convolution (K, C, 1, 1) as a matrix (K, C)."""
    return weight.view(weight.shape[0], weight.shape[1])


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
