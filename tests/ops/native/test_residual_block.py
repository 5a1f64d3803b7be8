"""The native executor of a residual block against PyTorch's operators in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.bits import assert_the_same_bits_in_several_callers
from tests.helpers.residual_blocks import CASES, Block, Shape, layer_by_layer
from tests.helpers.rounding import assert_as_exact_as, errors

from skipnets.ops import native
from skipnets.ops import residual_block as module
from skipnets.ops.choices import Choices
from skipnets.ops.residual_block import REFERENCE, NormedConvolution, execute, executor

if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)
from skipnets.ops.native.residual_block import NATIVE

residual_block = functools.partial(execute, NATIVE)
reference = functools.partial(execute, REFERENCE)


def statistics_of(made, block):
    """y and the statistics: where no ReLU's input can lie on the other side of 0."""
    return made[: 1 + 2 * len(block.convolutions)]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    maps=st.tuples(st.integers(2, 4), st.sampled_from([2, 3, 8, 15]), st.sampled_from([2, 4, 7, 17])),
    channels=st.sampled_from([1, 3, 16, 17, 40]),
    width=st.sampled_from([1, 4, 15, 16, 33]),
    added=st.sampled_from([0, 1, 8]),
    bottleneck=st.booleans(),
    stride=st.integers(1, 2),
    projects=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_float64_for_any_shape(
    isa, maps, channels, width, added, bottleneck, stride, projects, threads
):
    torch.set_num_threads(threads)
    last = width if projects and not bottleneck else channels + added
    outputs = (width, width, last) if bottleneck else (width, last)
    strides = (1, stride, 1) if bottleneck else (stride, 1)
    block = Block(Shape(*maps, channels, outputs, strides, projects))
    exact = block.run(layer_by_layer, torch.float64)
    own = block.run(residual_block, torch.float32)
    assert max(errors(statistics_of(own, block), statistics_of(exact, block))) <= 1e-5
    # A ReLU whose input is within rounding of 0 may go either way; over so few values it shows.
    assert sorted(errors(own, exact))[len(own) // 2] <= 3e-5


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_equals_float64(case):
    block = Block(CASES[case])
    own = block.run(residual_block, torch.float32)
    assert max(errors(own, block.run(layer_by_layer, torch.float64))) <= 3e-5


@pytest.mark.parametrize("case", ["basic", "bottleneck, stride"])
def test_is_as_exact_as_pytorch_tensor_by_tensor(isa, case):
    """Over seeds, each tensor's error is on average no more than that of PyTorch's float32."""
    blocks = [Block(CASES[case], seed) for seed in range(6)]
    assert_as_exact_as(
        (
            block.run(residual_block, torch.float32),
            block.run(layer_by_layer, torch.float32),
            block.run(layer_by_layer, torch.float64),
        )
        for block in blocks
    )


def test_large_maps_are_cut_into_strips_and_deep_products_into_parts(isa):
    for shape in (
        Shape(1, 61, 70, 40, (40, 40), (1, 1)),
        Shape(1, 61, 70, 16, (16, 16), (1, 1)),
        Shape(1, 5, 6, 130, (130, 130), (1, 1)),
        Shape(1, 61, 70, 24, (40, 40), (2, 1), True),
        Shape(2, 3, 3, 530, (16, 16, 530), (1, 1, 1)),
    ):
        block = Block(shape)
        own, exact = block.run(residual_block, torch.float32), block.run(layer_by_layer, torch.float64)
        assert max(errors(statistics_of(own, block), statistics_of(exact, block))) <= 1e-5
        assert sorted(errors(own, exact))[-3] <= 1e-3


def test_the_same_bits_for_the_same_number_of_threads():
    block = Block(CASES["bottleneck, stride"])
    assert_the_same_bits_in_several_callers(lambda: block.run(residual_block, torch.float32))


@pytest.mark.parametrize("case", ["basic", "basic, zeros", "bottleneck, stride"])
def test_any_memory_format_and_an_input_without_gradient(case):
    block = Block(CASES[case])
    expected = block.run(residual_block, torch.float32)
    last = block.run(residual_block, torch.float32, memory_format=torch.channels_last)
    without = block.run(residual_block, torch.float32, needs_input_grad=False)
    place = 1 + 2 * len(block.convolutions)  # of the input's gradient
    for own, wanted in zip(last, expected, strict=True):
        assert torch.equal(own, wanted)
    for own, wanted in zip(without, expected[:place] + expected[place + 1 :], strict=True):
        assert torch.equal(own, wanted)


def test_gradients_have_their_parameters_memory_format():
    block = Block(CASES["basic"])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = block.convolutions[0][0].float().contiguous(memory_format=memory_format).requires_grad_()
        first = NormedConvolution(weight, *(tensor.float() for tensor in block.convolutions[0][1:]))
        second = NormedConvolution(*(tensor.float() for tensor in block.convolutions[1]))
        residual_block(block.x.float(), block.plan, [first, second]).y.sum().backward()
        assert weight.grad.stride() == weight.stride()


def test_nan_stays_nan():
    block = Block(CASES["basic"])
    block.x[0, 3, 1, 1] = float("nan")
    for own, wanted in zip(
        *(block.run(run, torch.float32) for run in (residual_block, reference)), strict=True
    ):
        assert torch.equal(own.isnan(), wanted.isnan())


def test_what_is_saved_is_the_input_the_convolutions_outputs_and_the_output():
    block = Block(CASES["bottleneck, stride"])
    saved = set()

    def pack(tensor):
        if tensor.ndim == 4 and tensor.shape[0] == 3:
            saved.add((tensor.data_ptr(), tuple(tensor.shape)))
        return tensor

    convolutions = [
        NormedConvolution(*(tensor.float().requires_grad_() for tensor in each))
        for each in block.convolutions
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = residual_block(block.x.float(), block.plan, convolutions).y
    sizes = sorted(size for _, size in saved)
    made = [(3, 16, 7, 8), (3, 16, 4, 4), (3, 48, 4, 4), (3, 48, 4, 4)]
    assert sizes == sorted([(3, 24, 7, 8), *made, tuple(y.shape)])


def test_the_executor_is_measured_and_used(monkeypatch):
    choices = Choices(None)
    monkeypatch.setattr(module, "CHOICES", choices)
    block = Block(CASES["basic"])
    convolutions = [NormedConvolution(*(tensor.float() for tensor in each)) for each in block.convolutions]
    with choices.recording() as record:
        chosen = executor(block.x.float(), block.plan, convolutions)
    problem = "residual block 16>16(3)-16(3) stride 1 7x6"
    assert record == {problem: chosen}
    for way, own in (("native", residual_block), ("pytorch", reference)):
        choices.repeat({problem: way})
        found = module.residual_block(block.x.float(), block.plan, convolutions).y
        assert torch.equal(found, own(block.x.float(), block.plan, convolutions).y)
    assert executor(block.x, block.plan, convolutions) == "pytorch"  # float64
