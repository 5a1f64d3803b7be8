"""The fused kernels against PyTorch's operators in float64: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipnets.models import block_execution, create_model
from skipnets.ops import dense_block as reference
from skipnets.ops import triton as executor
from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters, execute

pytest.importorskip("triton")
from tests.helpers.launches import launched_passes
from tests.helpers.tf32 import products_in_tf32

from skipnets.ops.triton import dense_block as fused
from skipnets.ops.triton.launches import Launches

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
FLOAT32 = 1e-4 if ON_GPU else 1e-5
pytestmark = pytest.mark.cuda if ON_GPU else []


def make_layers(channels, growth_rate, bottleneck, count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)

    def normal(*size, mean=0.0):
        return (torch.randn(size, generator=generator) * 0.3 + mean).to(DEVICE, dtype).requires_grad_()

    layers = []
    for index in range(count):
        seen = channels + index * growth_rate
        layers.append(
            LayerParameters(
                normal(seen, mean=1.0),
                normal(seen),
                normal(bottleneck, seen, 1, 1),
                normal(bottleneck, mean=1.0),
                normal(bottleneck),
                normal(growth_rate, bottleneck, 3, 3),
            )
        )
    return layers


def doubled(layers):
    return [LayerParameters(*(t.detach().double().requires_grad_() for t in layer)) for layer in layers]


def assert_close(own, expected, tolerance):
    """The norm of each error, relative to what is expected."""
    for name, a, b in zip(
        ("output", "statistics", "input", *["parameter"] * 99), own, expected, strict=False
    ):
        error = (a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)
        assert error <= tolerance, (name, tuple(b.shape), error.item())
    assert len(own) == len(expected)


def step(block, x, plan, layers, downstream):
    """Output, statistics and all gradients."""
    x = x.detach().requires_grad_()
    result = block(x, plan, layers)
    parameters = [tensor for layer in layers for tensor in layer]
    gradients = torch.autograd.grad(result.features, [x, *parameters], downstream.to(result.features.dtype))
    statistics = torch.cat([*result.statistics, *(part.flatten() for part in result.bottleneck_statistics)])
    return [result.features.detach(), statistics, *gradients]


def compare(*size, keep, dtype, tolerance, order):
    own, expected = step_and_exact_step(fused.FUSED, *size, keep=keep, dtype=dtype, order=order)
    assert_close(own, expected, tolerance)


def step_and_exact_step(way, n, h, w, channels, growth_rate, bottleneck, count, *, keep, dtype, order):
    """A step by an executor, and in float64 by PyTorch's operators."""
    layers = make_layers(channels, growth_rate, bottleneck, count)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, channels, h, w, generator=generator).add(0.5).to(DEVICE, dtype)
    x = x.contiguous(memory_format=order)
    downstream = torch.randn(n, channels + count * growth_rate, h, w, generator=generator).to(DEVICE, dtype)
    eps = tuple(10.0 ** -(index + 2) for index in range(count))
    plan = DenseBlockPlan(eps, eps[::-1], keep, dtype)
    exact = DenseBlockPlan(eps, eps[::-1], True, torch.float64)
    return (
        step(functools.partial(execute, way), x, plan, layers, downstream),
        step(reference.dense_block, x.double(), exact, doubled(layers), downstream.double()),
    )


SIZES = [
    pytest.param((2, 5, 7, 32, 32, 128, 2), marks=pytest.mark.slow),
    (3, 4, 5, 10, 12, 48, 3),
    (2, 3, 6, 24, 12, 36, 2),
    (1, 1, 5, 7, 5, 10, 2),
    (2, 5, 1, 16, 16, 128, 1),
    (9, 1, 1, 3, 2, 8, 2),
]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(size, keep):
    order = torch.channels_last if keep else torch.contiguous_format
    compare(*size, keep=keep, dtype=torch.float32, tolerance=FLOAT32, order=order)


@pytest.mark.parametrize("index", range(max(map(len, fused.CONFIGS.values()))))
def test_every_configuration_equals_the_reference(index, monkeypatch):
    """As far as the interpreter knows them; widths of two chunks or more."""
    configs = {name: (found[index % len(found)],) for name, found in fused.CONFIGS.items()}
    monkeypatch.setattr(fused, "CONFIGS", configs)
    monkeypatch.setattr(fused, "LAUNCHES", Launches())
    for cache in (fused._configs, fused._scratch_sizes):
        monkeypatch.setattr(fused, cache.__name__, cache.__wrapped__)
    size, order = (2, 5, 4, 72, 16, 80, 2), torch.channels_last
    compare(*size, keep=True, dtype=torch.float32, tolerance=FLOAT32, order=order)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.tuples(
        st.integers(1, 4),
        st.integers(1, 7),
        st.integers(1, 7),
        st.integers(1, 40),
        st.integers(1, 20),
        st.integers(1, 40),
        st.integers(1, 3),
    ).filter(lambda size: size[0] * size[1] * size[2] > 1)
)
def test_equals_the_reference_at_any_size(size):
    """With a single channel, norm2 undoes its weight, whose gradient is a difference of equal numbers.

    Statistics of two values that are nearly equal magnify rounding, so PyTorch's float32 is a measure, too.
    """
    options = {"keep": True, "dtype": torch.float32, "order": torch.channels_last}
    own, expected = step_and_exact_step(fused.FUSED, *size, **options)
    rounded, _ = step_and_exact_step(reference.REFERENCE, *size, **options)
    for a, b, c in zip(own, rounded, expected, strict=True):
        scale = c.norm().clamp_min(0.1)
        allowed = max(10 * FLOAT32, 5 * float((b.double() - c).norm() / scale))
        assert (a.double() - c).norm() / scale <= allowed, tuple(c.shape)


def test_half_precision_is_as_near_as_its_digits_allow():
    size, order = (2, 5, 7, 32, 32, 64, 2), torch.channels_last
    compare(*size, keep=True, dtype=torch.float16, tolerance=3e-2, order=order)


@pytest.mark.skipif(not ON_GPU, reason="the interpreter has no TF32")
def test_tf32_is_as_near_as_that_of_pytorch():
    """Beside float64, and large enough that both have equal shares of ReLUs whose input changes its sign.

    On these depends a gradient's error: √(share), about 2 %. Triton cuts off the last 13 bits of a factor,
    which others may round: up to 2⁻¹⁰ for each of the two, and twice as much as by rounding.
    """
    options = {"keep": True, "dtype": torch.float32, "order": torch.channels_last}

    def errors(way):
        own, expected = step_and_exact_step(way, 16, 16, 16, 32, 32, 128, 2, **options)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(own, expected, strict=True)]

    assert max(errors(fused.FUSED)) <= FLOAT32
    with products_in_tf32(True):
        kernels, pytorch = errors(fused.FUSED), errors(reference.REFERENCE)
    assert kernels[0] > FLOAT32, "the launches that were recorded in float32 are not repeated"
    for own, theirs in zip(kernels, pytorch, strict=True):
        assert own <= 2 * theirs + 2**-9


@pytest.mark.parametrize(("name", "size"), [("densenet_bc40_k12", 8), ("densenet121", 20)])
def test_a_network_trains_through_the_kernels(monkeypatch, name, size):
    """A whole DenseNet with either stem: gradients and running statistics."""
    for module in (reference, block_execution):  # Without TF32 a network would not take the kernels.
        monkeypatch.setattr(module, "unsupported_block", lambda *_, **__: None)
    if not ON_GPU:
        monkeypatch.setattr(executor, "unavailable", lambda _: None)
        monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    launched = launched_passes(monkeypatch)
    options = {"block_config": (2, 2), "growth_rate": 4, "num_classes": 3}
    model = create_model(name, **options).to(DEVICE).train()
    expected = create_model(name, **options).to(DEVICE).double().train()
    expected.load_state_dict(model.state_dict())
    model.set_block_execution("linear")
    expected.set_block_execution("plain")
    images = torch.randn(3, 3, size, size, device=DEVICE)
    model(images).square().sum().backward()
    expected(images.double()).square().sum().backward()
    assert {"forward", "backward"} <= set(launched)
    own, wanted = ([*gradients_by_module(each), *each.buffers()] for each in (model, expected))
    assert_close(own, wanted, 100 * FLOAT32)


def gradients_by_module(model):
    """A norm's scale and shift together: the gradient of the stem's scale is nearly zero."""
    own = [[parameter.grad.flatten() for parameter in m.parameters(recurse=False)] for m in model.modules()]
    return [torch.cat(gradients) for gradients in own if gradients]


def test_says_why_it_steps_aside():
    cpu, widths = torch.device("cpu"), (32, 128)
    assert (
        executor.unsupported_block(cpu, torch.float32, widths=widths)
        == "there are fused kernels for CUDA alone"
    )
    if ON_GPU:
        assert executor.unsupported_block(DEVICE, torch.bfloat16, widths=widths) is None
        assert "bottleneck" in executor.unsupported_block(DEVICE, torch.bfloat16, widths=None)
        assert "float64" in executor.unsupported_block(DEVICE, torch.float64, widths=widths)
        assert "at most" in executor.unsupported_block(DEVICE, torch.bfloat16, widths=(65, 4))


@pytest.mark.parametrize("keep", [True, False])
def test_nan_stays_nan(keep):
    x = torch.randn(2, 12, 3, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[0, 3, 1, 1] = float("nan")
    downstream = torch.ones(2, 20, 3, 4, device=DEVICE)
    plan = DenseBlockPlan((1e-3, 1e-3), (1e-3, 1e-3), keep, torch.float32)
    own, expected = (
        step(functools.partial(execute, way), x, plan, make_layers(12, 4, 8, 2), downstream)
        for way in (fused.FUSED, reference.REFERENCE)
    )
    assert own[0][:, 12:].isnan().all()
    for a, b in zip(own, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan()), tuple(b.shape)
