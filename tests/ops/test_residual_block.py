"""A residual block as one operation against its layers one by one, in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.helpers.residual_blocks import CASES, Block, layer_by_layer
from tests.helpers.rounding import errors

from skipnets.ops import residual_block as module
from skipnets.ops.choices import Choices
from skipnets.ops.residual_block import REFERENCE, NormedConvolution, execute, executor, residual_block

reference = functools.partial(execute, REFERENCE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_equals_the_layers_one_by_one(case, memory_format):
    block = Block(CASES[case])
    own = block.run(residual_block, torch.float64, memory_format=memory_format)
    assert max(errors(own, block.run(layer_by_layer, torch.float64))) <= 1e-11


@pytest.mark.parametrize("case", ["basic", "basic, projection", "basic, zeros"])
def test_an_input_without_gradient(case):
    block = Block(CASES[case])
    own, exact = (
        block.run(run, torch.float64, needs_input_grad=False) for run in (reference, layer_by_layer)
    )
    assert max(errors(own, exact)) <= 1e-11


def test_counts_are_those_of_each_convolutions_output():
    block = Block(CASES["bottleneck, stride"])
    convolutions = [NormedConvolution(*each) for each in block.convolutions]
    assert reference(block.x, block.plan, convolutions).counts == [3 * 7 * 8, 3 * 4 * 4, 3 * 4 * 4, 3 * 4 * 4]


def test_second_derivatives_are_refused():
    block = Block(CASES["basic"])
    x = block.x.requires_grad_()
    y = reference(x, block.plan, [NormedConvolution(*each) for each in block.convolutions]).y
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_without_native_code_pytorchs_operators_run(monkeypatch):
    monkeypatch.setattr(module, "unsupported_device", lambda *_, **__: "skipnets-engine is not installed")
    block = Block(CASES["basic"])
    convolutions = [NormedConvolution(*(tensor.float() for tensor in each)) for each in block.convolutions]
    monkeypatch.setattr(module, "CHOICES", Choices(None))
    with module.CHOICES.recording() as record:
        assert executor(block.x.float(), block.plan, convolutions) == "pytorch"
    assert record == {}
