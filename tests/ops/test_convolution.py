from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skipnets.ops import convolution
from skipnets.ops.choices import Choices
from skipnets.ops.chunks import MapShape, as_maps
from skipnets.ops.convolution import DEFAULT_WAYS, PointwiseWays, convolve, convolve_backward, pointwise_ways


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "way"), [(1, "columns"), (1, "maps"), (1, "product"), (3, "maps"), (3, "product")]
)
@pytest.mark.parametrize(
    "size",
    [(2, 5, 7), (1, 1, 1), (3, 1, 4), (3, 4, 1), (20, 1, 1), (3, 5), (1, 3, 4, 5)],
    ids=lambda size: "×".join(map(str, size)),
)
@pytest.mark.parametrize("channels", [(6, 4), (1, 1)], ids=["6→4", "1→1"])
def test_equals_the_librarys_convolution_of_contiguous_maps(size, channels, kernel, way, dtype):
    shape, dims = MapShape(size[0], size[1:]), len(size) - 1
    x = torch.randn(shape.rows, channels[0]).to(dtype)
    gradient = torch.randn(shape.rows, channels[1]).to(dtype)
    weight = torch.randn(channels[1], channels[0], *[kernel] * dims).to(dtype)

    maps = as_maps(x, shape).double().clone(memory_format=torch.contiguous_format).requires_grad_()
    reference_weight = weight.double().clone().requires_grad_()
    expected = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](maps, reference_weight, padding=kernel // 2)
    torch.autograd.backward(expected, as_maps(gradient, shape).double())

    weight_gradient = torch.ones_like(weight)
    found = convolve(x, weight, shape, way)
    x_gradient = convolve_backward(gradient, x, weight, shape, way, weight_gradient=weight_gradient)

    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for own, reference in (
        (as_maps(found, shape), expected.detach()),
        (as_maps(x_gradient, shape), maps.grad),
        (weight_gradient, reference_weight.grad + 1),
    ):
        scale = float(reference.abs().max()) + 1
        assert float((own.double() - reference).abs().max()) <= tolerance * scale
        assert own.dtype == dtype


def test_ways_are_measured_in_float32_on_a_cpu_alone(monkeypatch):
    choices = Choices(None)
    monkeypatch.setattr(convolution, "CHOICES", choices)
    shape, cpu = MapShape(2, (4, 4)), torch.device("cpu")
    assert pointwise_ways(6, 4, shape, 32, cpu, torch.float64) == DEFAULT_WAYS
    assert pointwise_ways(6, 4, shape, 32, torch.device("meta"), torch.float32) == DEFAULT_WAYS
    with choices.recording() as record:
        ways = pointwise_ways(6, 4, shape, 32, cpu, torch.float32)
    assert record == {
        "1x1 convolution 6>4 4x4 forward": ways.forward,
        "1x1 convolution 6>4 4x4 backward": ways.backward,
    }
    choices.repeat({"1x1 convolution 6>4 4x4 backward": "product", "1x1 convolution 6>4 4x4 forward": "maps"})
    assert pointwise_ways(6, 4, shape, 32, cpu, torch.float32) == PointwiseWays("maps", "product")
