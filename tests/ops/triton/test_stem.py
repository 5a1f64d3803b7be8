"""A stem's fused kernels against PyTorch in float64: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skipnets.ops.stem import REFERENCE, StemParameters, StemPlan, execute

pytest.importorskip("triton")
from skipnets.ops.triton.stem import FUSED

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.cuda if ON_GPU else []


def expected_step(images, weight, gamma, beta, eps, downstream):
    """Convolution → norm → ReLU → pooling, by the library."""
    tensors = [tensor.detach().double().requires_grad_() for tensor in (images, weight, gamma, beta)]
    convolved = F.conv2d(tensors[0], tensors[1], stride=2, padding=3)
    normalized = F.batch_norm(convolved, None, None, *tensors[2:], training=True, eps=eps)
    maps = F.max_pool2d(F.relu(normalized), 3, 2, 1)
    variance, mean = torch.var_mean(convolved.detach(), (0, 2, 3), unbiased=False)
    return [maps.detach(), mean, variance, *torch.autograd.grad(maps, tensors, downstream.double())]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [(2, 3, 16, 12), (3, 1, 13, 9), (2, 3, 1, 7)])
def test_equals_the_library(size, keep):
    generator = torch.Generator().manual_seed(0)

    def normal(*size, mean=0.0, std=1.0):
        return (torch.randn(size, generator=generator) * std + mean).to(DEVICE).requires_grad_()

    channels, n = 70, size[0]
    images, weight = normal(*size), normal(channels, size[1], 7, 7, std=0.1)
    gamma, beta = normal(channels, mean=1.0, std=0.3), normal(channels, mean=0.2)
    pooled = [((side + 1) // 2 + 1) // 2 for side in size[2:]]
    downstream = normal(n, channels, *pooled).detach()
    for _ in range(2):  # The second time, launches are repeated where there is a GPU.
        plan = StemPlan(1e-3, keep, torch.float32)
        result = execute(FUSED, images, plan, StemParameters(weight, gamma, beta))
        own = [result.maps.detach(), *result.statistics]
        own += torch.autograd.grad(result.maps, [images, weight, gamma, beta], downstream)
        expected = expected_step(images, weight, gamma, beta, 1e-3, downstream)
        assert result.rows == n * ((size[2] + 1) // 2) * ((size[3] + 1) // 2)
        assert result.maps.is_contiguous(memory_format=torch.channels_last)
        for a, b in zip(own, expected, strict=True):
            assert a.shape == b.shape
            assert (a.double() - b).norm() <= (1e-2 if ON_GPU else 1e-5) * b.norm(), tuple(b.shape)


def test_ties_go_to_the_first_maximum():
    """As in PyTorch: equal pixels make equal values behind the convolution."""
    images = torch.ones(2, 1, 24, 24, device=DEVICE) + torch.arange(2.0, device=DEVICE).view(2, 1, 1, 1)
    weight = torch.ones(4, 1, 7, 7, device=DEVICE).requires_grad_()
    gamma, beta = torch.ones(4, device=DEVICE).requires_grad_(), torch.ones(4, device=DEVICE).requires_grad_()
    downstream = torch.arange(2 * 4 * 36, dtype=torch.float32, device=DEVICE).view(2, 4, 6, 6)
    result = execute(FUSED, images, StemPlan(1e-3, True, torch.float32), StemParameters(weight, gamma, beta))
    own = torch.autograd.grad(result.maps, [weight, gamma, beta], downstream)
    expected = expected_step(images, weight, gamma, beta, 1e-3, downstream)[4:]
    for a, b in zip(own, expected, strict=True):
        assert (a.double() - b).norm() <= (1e-2 if ON_GPU else 1e-4) * b.norm()


def test_nan_stays_nan():
    images, weight = torch.randn(2, 3, 16, 12, device=DEVICE), torch.randn(5, 3, 7, 7, device=DEVICE)
    images[1, 2, 3, 4] = float("nan")
    tensors = [weight, *(torch.ones(5, device=DEVICE) for _ in range(2))]
    parameters = StemParameters(*(tensor.requires_grad_() for tensor in tensors))
    made = []
    for way in (FUSED, REFERENCE):
        maps = execute(way, images, StemPlan(1e-3, True, torch.float32), parameters).maps
        made.append([maps, *torch.autograd.grad(maps.sum(), parameters)])
    assert made[0][0].isnan().all()
    for a, b in zip(*made, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
