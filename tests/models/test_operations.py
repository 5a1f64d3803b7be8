"""Operations against PyTorch's modules: shapes of tensors, sizes of outputs, numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skipnets.models.operations import (
    Activation,
    CellMean,
    ChannelConvolution,
    Convolution,
    Linear,
    Norm,
    Operation,
    PointwiseLinear,
    Pool,
    norm_groups,
)

PLACE = {"name": "x", "inputs": (0,), "output": 1}


@pytest.mark.parametrize(
    ("operation", "module"),
    [
        (
            Convolution(**PLACE, in_channels=8, out_channels=4, kernel=3, groups=2),
            nn.Conv2d(8, 4, 3, groups=2, bias=False),
        ),
        (
            Convolution(**PLACE, in_channels=2, out_channels=4, kernel=3, bias=True, dims=3),
            nn.Conv3d(2, 4, 3),
        ),
        (Norm(**PLACE, norm="batch", channels=6), nn.BatchNorm2d(6)),
        (Norm(**PLACE, norm="group", channels=6, groups=3), nn.GroupNorm(3, 6)),
        (Linear(**PLACE, in_features=6, out_features=2), nn.Linear(6, 2)),
        (PointwiseLinear(**PLACE, in_features=6, out_features=2), nn.Conv2d(6, 2, 1)),
        (ChannelConvolution(**PLACE, kernel=3), nn.Conv1d(1, 1, 3, bias=False)),
        (Activation(**PLACE), nn.ReLU()),
    ],
)
def test_tensors_are_those_of_the_module(operation: Operation, module: nn.Module) -> None:
    state = {f"x.{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert list(operation.tensors().items()) == list(state.items())
    assert operation.parameter_count() == sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("size", [7, 8, 15])
def test_windows_have_the_sizes_of_the_module(size: int) -> None:
    image = torch.zeros(1, 2, size, size + 1)
    for kernel, stride, padding, dilation in ((1, 1, 0, 1), (3, 2, 1, 1), (3, 1, 2, 2), (7, 2, 3, 1)):
        window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        operation = Convolution(**PLACE, in_channels=2, out_channels=2, **window)
        module = nn.Conv2d(2, 2, kernel, stride=stride, padding=padding, dilation=dilation)
        assert (operation.output_size(size), operation.output_size(size + 1)) == module(image).shape[2:]
    pool = Pool(**PLACE, mode="max", kernel=3, stride=2, padding=1)
    assert pool.output_size(size) == nn.MaxPool2d(3, 2, 1)(image).shape[2]
    cells = CellMean(**PLACE, kernel=2, stride=2)
    assert cells.output_size(size) == nn.AvgPool2d(2, 2, ceil_mode=True)(image).shape[2]


def test_groups_of_a_norm_divide_its_channels() -> None:
    assert [norm_groups(channels) for channels in (64, 24, 31, 37)] == [32, 24, 31, 1]
