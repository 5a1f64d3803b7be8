"""A block of wide dense layers as one operation, against PyTorch's modules one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.models.layers import LayerNorm2d
from skipnets.models.rdnet import RDNetLayer
from skipnets.ops import chunks
from skipnets.ops.wide_dense_block import WideDenseBlockPlan, WideLayerParameters, wide_dense_block

LAYERS, INPUT, GROWTH, INNER = 3, 6, 5, 16


def make_layers(*, gate: bool, scale: bool) -> list[RDNetLayer]:
    """Layers whose parameters are all of the order of 1: what begins near 0 would hide mistakes."""
    torch.manual_seed(0)
    layers = [
        RDNetLayer(
            INPUT + index * GROWTH,
            INNER,
            GROWTH,
            squeeze_excitation=gate,
            layer_scale=0.5 if scale else 0,
            norm=LayerNorm2d(INPUT + index * GROWTH),
            activation="gelu",
            proj_drop_rate=0,
            drop_path_rate=0,
        ).double()
        for index in range(LAYERS)
    ]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.4)
    return layers


def parameters(layer: RDNetLayer) -> WideLayerParameters:
    tensors: list[Tensor | None] = list(layer.layers.parameters())
    return WideLayerParameters(*tensors, *[None] * (10 - len(tensors)), layer.gamma)  # type: ignore[arg-type]


def run_layers(x: Tensor, layers: list[RDNetLayer], factors: list[Tensor | None]) -> Tensor:
    for layer, factor in zip(layers, factors, strict=True):
        new = layer(x)
        x = torch.cat([x, new if factor is None else new * factor[:, None, None, None]], dim=1)
    return x


@pytest.mark.parametrize("keep_outputs", [True, False])
@pytest.mark.parametrize(("gate", "scale", "drops"), [*itertools.product([True, False], repeat=3)])
def test_equals_the_layers_one_by_one(
    gate: bool, scale: bool, drops: bool, keep_outputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients in float64, in chunks of two images and one."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * 7 * 9 * (INPUT + GROWTH) * 8)
    layers = make_layers(gate=gate, scale=scale)
    factors = [torch.rand(3, dtype=torch.float64) if drops and index else None for index in range(LAYERS)]
    plan = WideDenseBlockPlan(eps=(1e-6,) * LAYERS, keep_outputs=keep_outputs)
    values = torch.randn(3, INPUT, 7, 9, dtype=torch.float64)
    weight = torch.randn(3, INPUT + LAYERS * GROWTH, 7, 9, dtype=torch.float64)
    found = []
    for run in (
        lambda x: run_layers(x, layers, factors),
        lambda x: wide_dense_block(x, plan, [parameters(layer) for layer in layers], factors),
    ):
        x = values.clone().requires_grad_()
        own = [x, *(parameter for layer in layers for parameter in layer.parameters())]
        y = run(x)
        found.append([y, *torch.autograd.grad((y * weight).sum(), own)])
    for expected, own_value in zip(*found, strict=True):
        assert (own_value - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_what_is_drawn_for_ones_is_what_stochastic_depth_multiplies_with() -> None:
    drop, x = StochasticDepth(0.5, "row"), torch.randn(6, 2, 3, 3)
    torch.manual_seed(1)
    expected = drop(x)
    torch.manual_seed(1)
    torch.testing.assert_close(x * drop(torch.ones(6, 1, 1, 1)), expected)


def test_second_derivatives_are_refused() -> None:
    layers = make_layers(gate=True, scale=True)
    x = torch.randn(2, INPUT, 4, 4, dtype=torch.float64, requires_grad=True)
    plan = WideDenseBlockPlan(eps=(1e-6,) * LAYERS, keep_outputs=True)
    y = wide_dense_block(x, plan, [parameters(layer) for layer in layers], [None] * LAYERS)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
