"""A transition's fused kernels against PyTorch in float64: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skipnets.ops.batch_norm import Statistics, map_statistics
from skipnets.ops.transition import REFERENCE, TransitionParameters, execute

pytest.importorskip("triton")
from skipnets.ops.triton.transition import FUSED

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.cuda if ON_GPU else []


def expected_step(x, gamma, beta, weight, eps, downstream):
    """Norm → ReLU → 1×1 convolution → 2×2 average pooling, by the library."""
    tensors = [tensor.detach().double().requires_grad_() for tensor in (x, gamma, beta, weight)]
    normalized = F.batch_norm(tensors[0], None, None, *tensors[1:3], training=True, eps=eps)
    maps = F.avg_pool2d(F.conv2d(F.relu(normalized), tensors[3]), 2)
    return [maps.detach(), *torch.autograd.grad(maps, tensors, downstream.double())]


@pytest.mark.parametrize(
    ("size", "out_channels", "dtype", "padding", "tolerance"),
    [
        ((2, 32, 4, 6), 16, torch.float32, 0, 1e-5),
        ((3, 10, 5, 7), 5, torch.float32, 6, 1e-5),
        ((2, 70, 2, 3), 35, torch.float32, 0, 1e-5),
        ((2, 64, 6, 4), 32, torch.float16, 16, 5e-3),
    ],
)
def test_equals_the_library(size, out_channels, dtype, padding, tolerance):
    """Odd sizes, whose last row and column are not pooled, and rows with padding, as blocks make them."""
    generator = torch.Generator().manual_seed(0)
    n, channels, height, width = size

    def normal(*size, mean=0.0, std=1.0):
        return (torch.randn(size, generator=generator) * std + mean).to(DEVICE)

    rows = normal(n, height, width, channels + padding).to(dtype)
    x = rows[..., :channels].permute(0, 3, 1, 2).requires_grad_()
    gamma, beta = normal(channels, mean=1.0, std=0.3).requires_grad_(), normal(channels).requires_grad_()
    weight = normal(out_channels, channels, 1, 1, std=channels**-0.5).requires_grad_()
    downstream = normal(n, out_channels, height // 2, width // 2).to(dtype)
    with torch.no_grad():
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), unbiased=False)
    for _ in range(2):  # The second time, launches are repeated where there is a GPU.
        parameters = TransitionParameters(gamma, beta, weight)
        maps = execute(FUSED, x, parameters, 1e-3, Statistics(mean, variance)).maps
        own = [maps.detach(), *torch.autograd.grad(maps, [x, gamma, beta, weight], downstream)]
        assert maps.is_contiguous(memory_format=torch.channels_last)
        expected = expected_step(x, gamma, beta, weight, 1e-3, downstream)
        for a, b in zip(own, expected, strict=True):
            error = (a.double() - b).norm() / b.norm()
            assert error <= (1e-3 if ON_GPU and tolerance < 1e-3 else tolerance), tuple(b.shape)


@pytest.mark.parametrize("known", [True, False])
def test_nan_stays_nan(known):
    """With statistics of its own, or with given ones, where one position alone is concerned."""
    x = torch.randn(2, 6, 5, 4, device=DEVICE)
    statistics = map_statistics(x)
    x[1, 2, 1, 3] = float("nan")
    parameters = TransitionParameters(
        *(torch.ones(size, device=DEVICE).requires_grad_() for size in ((6,), (6,), (3, 6, 1, 1)))
    )
    made = []
    for way in (FUSED, REFERENCE):
        own = x.clone(memory_format=torch.channels_last).requires_grad_()
        maps = execute(way, own, parameters, 1e-3, statistics if known else map_statistics(x)).maps
        made.append([maps, *torch.autograd.grad(maps.sum(), [own, *parameters])])
    assert made[0][0].isnan().sum() == (3 if known else made[0][0].numel())
    for a, b in zip(*made, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
