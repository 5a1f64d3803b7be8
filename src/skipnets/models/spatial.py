"""PyTorch's layers by the number of spatial axes: 1 for signals, 2 for images, 3 for volumes.

Shapes: N batch, C channels; a map is (N, C, L), (N, C, H, W) or (N, C, D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn

__all__ = [
    "ADAPTIVE_AVERAGES",
    "AVERAGES",
    "AVERAGE_POOLINGS",
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "INSTANCE_NORMS",
    "MAX_POOLINGS",
    "BatchNorm",
    "Convolution",
    "spatial_axes",
]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

CONVOLUTIONS: Mapping[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS: Mapping[int, type[BatchNorm]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
INSTANCE_NORMS: Mapping[int, type[nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d]] = {
    1: nn.InstanceNorm1d,
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
MAX_POOLINGS: Mapping[int, type[nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d]] = {
    1: nn.MaxPool1d,
    2: nn.MaxPool2d,
    3: nn.MaxPool3d,
}
AVERAGE_POOLINGS: Mapping[int, type[nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d]] = {
    1: nn.AvgPool1d,
    2: nn.AvgPool2d,
    3: nn.AvgPool3d,
}
AVERAGES: Mapping[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_AVERAGES: Mapping[int, Callable[..., Any]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


def spatial_axes(dims: int) -> tuple[int, ...]:
    """The axes of a map behind batch and channels: (2, 3) of an image's."""
    return tuple(range(2, 2 + dims))
