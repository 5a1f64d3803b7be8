"""The operators that compilers see: their registrations, and the same numbers as without a compiler."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.library import opcheck

from skipnets.ops import dense_block as blocks
from skipnets.ops import operators
from skipnets.ops import stem as stems
from skipnets.ops import transition as transitions
from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters
from skipnets.ops.stem import StemParameters, StemPlan
from skipnets.ops.transition import TransitionParameters

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# A GPU computes float32 products in TF32.
TOLERANCE = {"rtol": 1e-2, "atol": 1e-2} if ON_GPU else {"rtol": 1.3e-6, "atol": 1e-5}
REGISTRATIONS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def check(operator, arguments, registrations=REGISTRATIONS):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute")  # Of the check's own tensors.
        opcheck(operator.default, arguments, test_utils=registrations)


def normal(*size, dtype=torch.float64, mean=0.0, device="cpu"):
    generator = torch.Generator().manual_seed(sum(size))
    return (torch.randn(size, generator=generator) * 0.5 + mean).to(device, dtype).requires_grad_()


def make_layers(channels, growth_rate, bottleneck, count, dtype=torch.float64, device="cpu"):
    kind = {"dtype": dtype, "device": device}
    layers = []
    for seen in range(channels, channels + count * growth_rate, growth_rate):
        first = (normal(seen, **kind, mean=1.0), normal(seen, **kind))
        if not bottleneck:
            layers.append(LayerParameters(*first, normal(growth_rate, seen, 3, 3, **kind)))
            continue
        second = (normal(bottleneck, **kind, mean=1.0), normal(bottleneck, **kind))
        weights = (
            normal(bottleneck, seen, 1, 1, **kind),
            normal(growth_rate, bottleneck, 3, 3, **kind),
        )
        layers.append(LayerParameters(*first, weights[0], *second, weights[1]))
    return layers


def make_plan(count, bottleneck, *, keep, dtype):
    eps = tuple(10.0 ** -(index + 2) for index in range(count))
    return DenseBlockPlan(eps, eps[::-1] if bottleneck else (), keep, dtype)


def assert_equal(own, expected, leaves):
    """Everything that two results hold, and the gradients of what went in."""
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, check_stride=True)
    downstream = torch.linspace(-1, 1, own[0].numel(), dtype=own[0].dtype).view(own[0].shape)
    gradients = [torch.autograd.grad(result[0], leaves, downstream) for result in (own, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def flat_block(result):
    return [result.features, *result.statistics, *result.bottleneck_statistics]


@pytest.mark.parametrize(("bottleneck", "keep"), [(8, True), (8, False), (0, True)])
def test_a_dense_block(bottleneck, keep):
    x, layers = normal(2, 5, 4, 3), make_layers(5, 3, bottleneck, 2)
    plan = make_plan(2, bottleneck, keep=keep, dtype=torch.float64)
    leaves = [x, *(tensor for layer in layers for tensor in layer if tensor is not None)]
    own = operators.dense_block(x, plan, layers, fused=False)
    assert_equal(flat_block(own), flat_block(blocks.dense_block(x, plan, layers)), leaves)
    arguments = (x, leaves[1:], len(layers), [*plan.eps1, *plan.eps2], keep, False)
    check(torch.ops.skipnets.dense_block, arguments)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_transition(order):
    x = normal(2, 6, 5, 4).detach().contiguous(memory_format=order).requires_grad_()
    parameters = TransitionParameters(normal(6, mean=1.0), normal(6), normal(3, 6, 1, 1))
    own, expected = (
        [result.maps, *result.statistics]
        for result in (
            operators.transition(x, parameters, 1e-3, fused=False),
            transitions.transition(x, parameters, 1e-3),
        )
    )
    assert_equal(own, expected, [x, *parameters])
    check(torch.ops.skipnets.transition, (x, *parameters, 1e-3, False))


@pytest.mark.parametrize("keep", [True, False])
def test_a_stem(keep):
    images = normal(2, 3, 12, 9)
    parameters = StemParameters(normal(4, 3, 7, 7), normal(4, mean=1.0), normal(4))
    plan = StemPlan(1e-3, keep, torch.float64)
    results = (operators.stem(images, plan, parameters, fused=False), stems.stem(images, plan, parameters))
    assert results[0].rows == results[1].rows
    own, expected = ([result.maps, *result.statistics] for result in results)
    assert_equal(own, expected, [images, *parameters])
    arguments = (images, *parameters, *plan[:3], False)
    check(torch.ops.skipnets.stem, arguments)


@(pytest.mark.cuda if ON_GPU else lambda tested: tested)
class TestFusedKernels:
    """The same operators around the kernels for GPUs, here in Triton's interpreter."""

    REGISTRATIONS = ("test_schema", "test_faketensor")

    @pytest.fixture(autouse=True)
    def _interpreter(self):
        pytest.importorskip("triton")

    @pytest.mark.parametrize("keep", [True, False])
    def test_a_dense_block(self, keep):
        x, layers = (
            normal(1, 5, 2, 3, dtype=torch.float32, device=DEVICE),
            make_layers(5, 3, 8, 1, torch.float32, DEVICE),
        )
        plan = make_plan(1, 8, keep=keep, dtype=torch.float32)
        leaves = [x, *(tensor for layer in layers for tensor in layer)]
        from skipnets.ops.triton.dense_block import FUSED

        own = operators.dense_block(x, plan, layers, fused=True)
        assert_equal(flat_block(own), flat_block(blocks.execute(FUSED, x, plan, layers)), leaves)
        arguments = (x, leaves[1:], len(layers), [*plan.eps1, *plan.eps2], keep, True)
        check(torch.ops.skipnets.dense_block, arguments, self.REGISTRATIONS)

    def test_a_transition(self):
        x = normal(2, 6, 5, 4, dtype=torch.float32, device=DEVICE)
        values = (
            normal(6, dtype=torch.float32, mean=1.0, device=DEVICE),
            normal(6, dtype=torch.float32, device=DEVICE),
        )
        parameters = TransitionParameters(*values, normal(3, 6, 1, 1, dtype=torch.float32, device=DEVICE))
        arguments = (x, *parameters, 1e-3, True)
        check(torch.ops.skipnets.transition, arguments, self.REGISTRATIONS)
        own, expected = (
            operators.transition(x, parameters, 1e-3, fused=fused).maps for fused in (True, False)
        )
        torch.testing.assert_close(own, expected.contiguous(memory_format=torch.channels_last), **TOLERANCE)

    @pytest.mark.parametrize("keep", [True, False])
    def test_a_stem(self, keep):
        images = normal(2, 3, 8, 7, dtype=torch.float32, device=DEVICE)
        values = (
            normal(4, dtype=torch.float32, mean=1.0, device=DEVICE),
            normal(4, dtype=torch.float32, device=DEVICE),
        )
        parameters = StemParameters(normal(4, 3, 7, 7, dtype=torch.float32, device=DEVICE), *values)
        plan = StemPlan(1e-3, keep, torch.float32)
        arguments = (images, *parameters, *plan[:3], True)
        check(torch.ops.skipnets.stem, arguments, self.REGISTRATIONS)
        own, expected = (
            operators.stem(images, plan, parameters, fused=fused).maps for fused in (True, False)
        )
        torch.testing.assert_close(own, expected, **TOLERANCE)
