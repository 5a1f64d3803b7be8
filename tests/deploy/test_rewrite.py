"""Each rewrite computes what the network did, on every architecture, and leaves the given one as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.networks import DISTINCT_NETWORKS
from torch import Tensor, nn

from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.graph import simplify
from skipnets.deploy.rewrite import (
    CenteredConvolution,
    fold_norms,
    normalize_inside,
    pool_before_convolution,
)
from skipnets.models.backbone import Backbone
from skipnets.models.factory import create_model
from skipnets.models.registry import model_config

Model = Backbone[Any]
REWRITES: list[Callable[[Model], Model]] = [fold_norms, pool_before_convolution]

SMALL: dict[str, dict[str, object]] = {
    "densenet121": {"block_config": (2, 2, 1), "growth_rate": 8},
    "densenet40_k12": {"block_config": (2, 2), "growth_rate": 4},
    "densenet_bc40_k12": {"block_config": (2, 2), "growth_rate": 4},
    "resnet18": {"block_config": (1, 1, 1, 1), "width": 8},
    "resnet50": {"block_config": (1, 2), "width": 8},
    "resnext50_32x4d": {"block_config": (1, 1), "width": 16, "groups": 4, "width_per_group": 16},
    "resnet20": {"block_config": (2, 1, 1)},
    "resnetv2_50x1_bit": {"block_config": (1, 1), "width": 16, "norm": "batch"},
}


def settled(name: str, **fields: object) -> Model:
    """A model whose norms have weights, biases and statistics that are not the initial ones."""
    model = create_model(name, **fields)
    size = max(model.config.smallest_size, 16) + 9
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.3, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the plain mean of what was seen
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, model.config.in_chans, size, size))
    return model.eval()


def images(model: Model, count: int = 2) -> Tensor:
    """Not square, and of odd sides: poolings and strides round."""
    size = max(model.config.smallest_size, 24) + 9
    return torch.randn(count, model.config.in_chans, size, size + 4)


def assert_equal_logits(first: Tensor, second: Tensor) -> None:
    """Within 1e-5 of the largest logit."""
    scale = max(float(first.abs().max()), 1.0)
    assert float((first - second).abs().max()) <= 1e-5 * scale


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.__name__)
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_rewrite_computes_the_same(name: str, rewrite: Callable[[Model], Model]) -> None:
    model = settled(name, num_classes=5, **SMALL[name])
    x = images(model)
    assert_equal_logits(model(x), rewrite(model)(x))


@pytest.mark.parametrize("norm", ["group", None])
@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet18"])
@torch.no_grad()
def test_other_norms_and_none(name: str, norm: str | None) -> None:
    model = settled(name, num_classes=5, norm=norm, **SMALL[name])
    x = images(model)
    for rewrite in REWRITES:
        assert_equal_logits(model(x), rewrite(model)(x))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_all_rewrites_together(name: str) -> None:
    model = settled(name, num_classes=5, **SMALL[name]).double()
    x = images(model).double()
    together = pool_before_convolution(fold_norms(model))
    torch.testing.assert_close(together(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT_NETWORKS)
@torch.no_grad()
def test_every_architecture(name: str) -> None:
    """Within 1e-5 of float64, or twice as far as the network itself: depth magnifies its own rounding."""
    torch.manual_seed(0)
    model = settled(name)
    preprocessing = Preprocessing(size=max(model.config.smallest_size, 16) + 9)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *preprocessing.size, 3), dtype=np.uint8)
    planes, x = (torch.from_numpy(make(pixels)) for make in (preprocessing.planes, preprocessing.normalize))
    exact = copy.deepcopy(model).double()
    expected = exact(x.double())
    allowed = max(1e-5, 2 * relative_error(model(x), expected))
    for rewrite in REWRITES:
        assert relative_error(rewrite(model)(x), expected) <= allowed, rewrite.__name__
        assert relative_error(rewrite(exact)(x.double()), expected) <= 1e-9, rewrite.__name__
    inside = normalize_inside(model, preprocessing.mean, preprocessing.std)
    assert relative_error(inside(planes), expected) <= allowed
    assert relative_error(simplify(model, preprocessing, "uint8")(planes), expected) <= allowed


@pytest.mark.parametrize("name", SMALL)
def test_the_given_model_is_untouched(name: str) -> None:
    model = settled(name, **SMALL[name]).train()
    before = copy.deepcopy(model)
    for rewrite in [*REWRITES, lambda given: normalize_inside(given, (0.5,) * 3, (0.2,) * 3)]:
        rewritten = rewrite(model)
        assert not rewritten.training
        own = {parameter.data_ptr() for parameter in model.parameters()}
        assert not own & {parameter.data_ptr() for parameter in rewritten.parameters()}
    assert repr(model) == repr(before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for (name, value), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_which_norms_are_folded() -> None:
    assert not norms(fold_norms(settled("resnet50", **SMALL["resnet50"])))
    densenet = fold_norms(settled("densenet121", **SMALL["densenet121"]))
    left = [path for path, module in densenet.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert [path for path in left if not path.endswith("norm1")] == [
        "features.transition1.norm",
        "features.transition2.norm",
        "features.norm5",
    ]


def test_pooling_comes_before_the_convolution() -> None:
    model = settled("densenet121", **SMALL["densenet121"])
    order = [name for name, _ in pool_before_convolution(model).features.transition1.named_children()]
    assert order == ["norm", "relu", "pool", "conv"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_normalizing_inside_is_exact_to_the_border(name: str, channels: int) -> None:
    """Preprocessing, which divides and subtracts on its own, is the reference; borders matter."""
    model = settled(name, num_classes=5, in_chans=channels, **SMALL[name])
    size = model.config.smallest_size + 20
    preprocessing = Preprocessing(
        size=(size, size + 3),
        channels=channels,
        mean=(0.7, 0.1, 0.4)[:channels],
        std=(0.2, 0.5, 0.3)[:channels],
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size + 3, channels), dtype=np.uint8)
    pixels[0] = 0  # black: without centered padding, its border would be the first to differ
    inside = normalize_inside(model, preprocessing.mean, preprocessing.std)
    expected = model(torch.from_numpy(preprocessing.normalize(pixels)))
    planes = torch.from_numpy(preprocessing.planes(pixels))
    assert planes.dtype == torch.uint8
    assert_equal_logits(expected, inside(planes))
    assert_equal_logits(expected, inside(planes.float()))


@torch.no_grad()
def test_centered_padding_alone() -> None:
    """One convolution by hand: the mean color gives what zeros give, all the way to the corner."""
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    centered = CenteredConvolution(torch.tensor([30.0, 200.0]), convolution)
    flat = torch.tensor([30, 200], dtype=torch.uint8)[None, :, None, None].expand(1, 2, 5, 5)
    torch.testing.assert_close(centered(flat), convolution(torch.zeros(1, 2, 5, 5)))


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
@torch.no_grad()
def test_simplify_takes_half_precision_and_leaves_it(input_type: str) -> None:
    model = settled("resnet20", **SMALL["resnet20"]).bfloat16()
    simple = simplify(model, Preprocessing(size=16), input_type)
    assert {parameter.dtype for parameter in simple.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_rewritten_models_keep_their_config() -> None:
    config = model_config("resnet20")
    assert fold_norms(create_model("resnet20")).config == config
