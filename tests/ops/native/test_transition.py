"""The native executor of a transition against PyTorch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.bits import assert_the_same_bits_in_several_callers
from tests.helpers.rounding import assert_as_exact_as, errors, random_normal

from skipnets.ops import native
from skipnets.ops import transition as module
from skipnets.ops.batch_norm import map_statistics
from skipnets.ops.choices import Choices
from skipnets.ops.transition import REFERENCE, TransitionParameters, cpu_executor, execute, transition

if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)
from skipnets.ops.native.transition import NATIVE

EPS = 1e-4


def layer_by_layer(x, gamma, beta, weight):
    normed = F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    return F.avg_pool2d(F.conv2d(F.relu(normed), weight), 2)


def by(way):
    def run(x, *parameters):
        statistics = map_statistics(x.detach())
        return execute(way, x, TransitionParameters(*parameters), EPS, statistics).maps

    return run


class Case:
    """Random numbers of one transition, in float64: input, parameters and gradient."""

    def __init__(self, images, height, width, inputs, outputs, seed=0):
        normal = random_normal(seed)
        self.x = normal(images, inputs, height, width)
        self.parameters = [normal(inputs), normal(inputs) / 2, normal(outputs, inputs, 1, 1) / inputs**0.5]
        self.downstream = normal(images, outputs, height // 2, width // 2)

    def run(self, transition, dtype, memory_format=torch.contiguous_format):
        """The maps and all gradients, in float64."""
        x = self.x.to(dtype, copy=True).contiguous(memory_format=memory_format)
        leaves = [
            each.requires_grad_() for each in (x, *(own.to(dtype, copy=True) for own in self.parameters))
        ]
        maps = transition(*leaves)
        gradients = torch.autograd.grad(maps, leaves, self.downstream.to(dtype))
        return [each.detach().double() for each in (maps, *gradients)]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    images=st.integers(2, 3),
    height=st.sampled_from([2, 3, 8, 15]),
    width=st.sampled_from([2, 3, 7, 18]),
    inputs=st.sampled_from([1, 3, 16, 17, 40]),
    outputs=st.sampled_from([1, 4, 15, 16, 33]),
    threads=st.integers(1, 3),
)
def test_equals_float64_for_any_shape(isa, images, height, width, inputs, outputs, threads):
    torch.set_num_threads(threads)
    case = Case(images, height, width, inputs, outputs)
    exact, own = case.run(layer_by_layer, torch.float64), case.run(by(NATIVE), torch.float32)
    assert own[0].shape == exact[0].shape
    assert errors(own[:1], exact[:1])[0] <= 1e-5
    # A ReLU whose input is within rounding of 0 may go either way; over so few values it shows.
    assert sorted(errors(own, exact))[-2] <= 3e-5


def test_is_as_exact_as_pytorch_tensor_by_tensor(isa):
    """Over seeds, each tensor's error is about that of PyTorch's float32."""
    cases = [Case(3, 9, 14, 48, 24, seed) for seed in range(6)]
    assert_as_exact_as(
        (
            case.run(by(NATIVE), torch.float32),
            case.run(layer_by_layer, torch.float32),
            case.run(layer_by_layer, torch.float64),
        )
        for case in cases
    )


def test_large_maps_are_cut_into_chunks(isa):
    for case in (Case(1, 60, 71, 100, 20), Case(2, 4, 5, 600, 40)):
        own, exact = case.run(by(NATIVE), torch.float32), case.run(layer_by_layer, torch.float64)
        assert sorted(errors(own, exact))[-2] <= 3e-5


def test_the_same_bits_for_the_same_number_of_threads():
    case = Case(3, 9, 8, 24, 12)
    assert_the_same_bits_in_several_callers(lambda: case.run(by(NATIVE), torch.float32))


def test_any_memory_format():
    case = Case(2, 7, 6, 17, 9)
    own = case.run(by(NATIVE), torch.float32)
    for last, wanted in zip(case.run(by(NATIVE), torch.float32, torch.channels_last), own, strict=True):
        assert torch.equal(last, wanted)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = case.x.float().contiguous(memory_format=memory_format)
        weight = case.parameters[2].float().contiguous(memory_format=memory_format).requires_grad_()
        maps = by(NATIVE)(x, *(each.float() for each in case.parameters[:2]), weight)
        assert maps.is_contiguous(memory_format=memory_format)
        maps.sum().backward()
        assert weight.grad.stride() == weight.stride()
    transposed = case.parameters[2].float().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    maps = by(NATIVE)(x, *(each.float() for each in case.parameters[:2]), transposed)
    maps.sum().backward()
    assert torch.equal(transposed.grad, weight.grad)


def test_nan_stays_nan():
    case = Case(2, 4, 4, 5, 3)
    case.x[0, 3, 1, 1] = float("nan")
    own, wanted = (case.run(by(way), torch.float32) for way in (NATIVE, REFERENCE))
    for a, b in zip(own, wanted, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


def test_the_executor_is_measured_and_used(monkeypatch):
    choices = Choices(None)
    monkeypatch.setattr(module, "CHOICES", choices)
    case = Case(2, 7, 6, 16, 8)
    x, parameters = case.x.float(), TransitionParameters(*(each.float() for each in case.parameters))
    with choices.recording() as record:
        chosen = cpu_executor(x, parameters)
    assert record["transition 16>8 7x6"] == chosen
    for way, executor in (("native", NATIVE), ("pytorch", REFERENCE)):
        choices.repeat({"transition 16>8 7x6": way})
        assert torch.equal(transition(x, parameters, EPS).maps, by(executor)(x, *parameters))
    assert cpu_executor(case.x, parameters) == "pytorch"  # float64
