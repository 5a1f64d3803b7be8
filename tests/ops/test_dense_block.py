"""The operation alone, against torchvision's dense block and against the equation written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.densenet import _DenseBlock

from skipnets.ops import chunks
from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters, dense_block


def assert_equal(own, expected):
    for a, b in zip(own, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 20])
@pytest.mark.parametrize("size", [(3, 6, 5, 7), (8, 5, 4, 4), (1, 2, 3, 2)])
def test_equals_torchvisions_block(size, chunk_bytes, keep, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    layers, growth_rate = 3, 4
    block = _DenseBlock(layers, size[1], 4, growth_rate, 0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    expected = block(x)
    downstream = torch.randn_like(expected)
    wanted = (x, *block.parameters())
    gradients = torch.autograd.grad(expected, wanted, downstream)

    plan = DenseBlockPlan((1e-5,) * layers, (1e-5,) * layers, keep, torch.float64)
    flat = list(block.parameters())
    own = [LayerParameters(*flat[start : start + 6]) for start in range(0, len(flat), 6)]
    # torchvision defines norm1, conv1, norm2, conv2 in this order, so its parameters are ours.
    result = dense_block(x, plan, own)
    assert_equal([result.features], [expected])
    assert_equal(torch.autograd.grad(result.features, wanted, downstream), gradients)
    assert_equal([result.statistics.mean], [expected.mean((0, 2, 3))])
    assert_equal([result.statistics.variance], [expected.var((0, 2, 3), correction=0)])
    assert result.features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 20])
def test_without_bottleneck_and_with_an_epsilon_for_each_norm(chunk_bytes, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    eps, growth_rate = (1e-5, 0.1, 2.0), 2
    x = torch.randn(4, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    layers = []
    for index in range(3):
        channels = 3 + index * growth_rate
        tensors = (torch.randn(channels), torch.randn(channels), torch.randn(growth_rate, channels, 3, 3))
        layers.append(LayerParameters(*(tensor.double().requires_grad_() for tensor in tensors)))

    expected = x
    for layer, epsilon in zip(layers, eps, strict=True):
        normed = F.batch_norm(expected, None, None, layer.gamma1, layer.beta1, training=True, eps=epsilon)
        expected = torch.cat([expected, F.conv2d(normed.relu(), layer.weight1, padding=1)], dim=1)
    wanted = (x, *(tensor for layer in layers for tensor in layer if tensor is not None))
    downstream = torch.randn_like(expected)

    result = dense_block(x, DenseBlockPlan(eps, (), True, torch.float64), layers)
    assert_equal([result.features], [expected])
    assert_equal(
        torch.autograd.grad(result.features, wanted, downstream),
        torch.autograd.grad(expected, wanted, downstream),
    )
