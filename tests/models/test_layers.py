"""Layers that PyTorch does not have, against timm's."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from timm.layers import EffectiveSEModule, EvoNorm2dS0, FilterResponseNormTlu2d, get_act_layer
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from torch import nn

from skipnets.models.layers import (
    EffectiveSqueezeExcitation,
    EvoNormS0,
    FilterResponseNorm,
    LayerNorm2d,
    make_activation,
)
from skipnets.models.operations import ActivationFunction


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (TimmLayerNorm2d(6), LayerNorm2d(6)),
        (EffectiveSEModule(6), EffectiveSqueezeExcitation(6)),
        (FilterResponseNormTlu2d(6), FilterResponseNorm(6)),
        (FilterResponseNormTlu2d(6, apply_act=False), FilterResponseNorm(6, activated=False)),
        (EvoNorm2dS0(6, groups=3), EvoNormS0(6, 3)),
        (EvoNorm2dS0(6, groups=3, apply_act=False), EvoNormS0(6, 3, activated=False)),
    ],
)
def test_layers_are_timm_s(theirs: nn.Module, ours: nn.Module) -> None:
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    x = 3 * torch.randn(2, 6, 4, 5) + 1
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)
        output.square().sum().backward()
        results.append((output, leaf.grad, {name: each.grad for name, each in layer.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [FilterResponseNorm(4), EvoNormS0(4, 2)])
def test_squares_of_half_precision_do_not_overflow(norm: nn.Module) -> None:
    x = 1000 * torch.randn(2, 4, 5, 6)
    low = norm(x.half())
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), norm(x), rtol=2e-2, atol=1e-2)


def test_a_layer_norm_of_pooled_features_is_that_of_a_map_of_one_pixel() -> None:
    norm, x = LayerNorm2d(5), torch.randn(3, 5)
    torch.testing.assert_close(norm(x), norm(x[:, :, None, None]).flatten(1))
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-6).sqrt())


@pytest.mark.parametrize("function", get_args(ActivationFunction))
def test_activations_are_timm_s(function: ActivationFunction) -> None:
    x = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(make_activation(function)(x), get_act_layer(function)()(x))
