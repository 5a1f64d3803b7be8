"""Norms and activations by name, against networks put together from others' layers, and timm's own."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from tests.helpers.graphs import assert_equal_to_the_built_model
from tests.helpers.networks import SMALL_RDNET
from timm.layers import EvoNorm2dS0, FilterResponseNormTlu2d
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from skipnets.errors import UserError
from skipnets.insight.summary import summarize
from skipnets.models import build_model, create_model, model_config, network_graph
from skipnets.models.operations import norm_groups
from skipnets.models.weights.loading import load_weights
from skipnets.runtimes import open_runtime

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(norm_groups(channels), channels),
    "layer2d": lambda channels: LayerNorm2d(channels, eps=1e-6),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
# Norms with the activation behind them, which is left out where there is none.
ACTIVATED_NORMS: dict[str, Callable[[int, bool], nn.Module]] = {
    "filter-response": lambda channels, act: FilterResponseNormTlu2d(channels, apply_act=act),
    "evonorm-s0": lambda channels, act: EvoNorm2dS0(channels, groups=norm_groups(channels), apply_act=act),
}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hard_swish": nn.Hardswish}
NETWORKS: dict[str, dict[str, Any]] = {
    "densenet121": {"block_config": (2, 1), "growth_rate": 4},
    "densenet40_k12": {"block_config": (1, 2), "growth_rate": 4},
    "resnet18": {"block_config": (1, 1), "width": 8},
    "resnet50": {"block_config": (1, 1), "width": 8},
    "rdnet_tiny": SMALL_RDNET | {"layer_scale": 0.5},
}


def put_together(name: str, norm: str, activation: str) -> nn.Module:
    """The original network, whose norms and activations are replaced by other layers one by one."""
    model = copy.deepcopy(create_model(name, num_classes=3, **NETWORKS[name]))
    if name == "rdnet_tiny":
        return replaced_in_rdnet(model, norm, activation)
    for path, module in list(model.named_modules()):
        ends_a_branch = "downsample" in path or path.endswith("bn2" if name == "resnet18" else "bn3")
        if isinstance(module, nn.BatchNorm2d) and norm in ACTIVATED_NORMS:
            model.set_submodule(path, ACTIVATED_NORMS[norm](module.num_features, not ends_a_branch))
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(path, NORMS[norm](module.num_features))
        elif isinstance(module, nn.ReLU):
            follows_a_sum = path.endswith(".relu2" if name == "resnet18" else ".relu3")
            replaced = norm in ACTIVATED_NORMS and not follows_a_sum
            model.set_submodule(path, nn.Identity() if replaced else ACTIVATIONS[activation]())
    return model


def replaced_in_rdnet(model: nn.Module, norm: str, activation: str) -> nn.Module:
    """No activation follows its norms, and that of the pooled features is none of maps."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm) and path != "head.norm":
            channels = module.normalized_shape[0]
            if norm in ACTIVATED_NORMS:  # EvoNorm-S0 would not normalize without its nonlinearity
                model.set_submodule(path, ACTIVATED_NORMS[norm](channels, norm == "evonorm-s0"))
            else:
                model.set_submodule(path, NORMS[norm](channels))
        elif isinstance(module, nn.GELU):
            model.set_submodule(path, ACTIVATIONS[activation]())
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        ("batch", "silu"),
        ("group", "gelu"),
        ("layer2d", "hard_swish"),
        ("instance", "relu"),
        ("instance", "silu"),
        ("filter-response", "relu"),
        ("evonorm-s0", "relu"),
    ],
)
def test_a_network_is_what_can_be_put_together(name: str, norm: str, activation: str) -> None:
    ours = create_model(name, num_classes=3, norm=norm, activation=activation, **NETWORKS[name])
    theirs = put_together(name, norm, activation)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 40)
    outputs = [model(images) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1])
    gradients = []
    for model, output in zip((ours, theirs), outputs, strict=True):
        output.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    count = sum(parameter.numel() for parameter in theirs.parameters())
    graph = network_graph(ours.config)
    assert graph.parameter_count() == count
    assert {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()} == graph.tensors()
    assert f"{count:,}" in str(summarize(ours))


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "letters"), [("evonorm-s0", "evos"), ("filter-response", "frn")])
def test_pre_activation_networks_are_timm_s(norm: str, letters: str) -> None:
    theirs = timm.create_model(f"resnetv2_50d_{letters}", num_classes=3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.5, 0.2)
    ours = create_model("resnetv2_50d", num_classes=3, norm=norm)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("norm", ["instance", "filter-response"])
@pytest.mark.parametrize("name", [*NETWORKS, "resnetv2_18", "regnetx_002"])
def test_norms_over_pixels_have_two_at_the_smallest_size(name: str, norm: str) -> None:
    shape = NETWORKS.get(name, {"block_config": (1, 1)} | ({"widths": (16, 24)} if "reg" in name else {}))
    model = create_model(name, num_classes=3, norm=norm, **shape)
    maps = []
    for module in model.modules():
        if type(module).__name__ in ("InstanceNorm2d", "FilterResponseNorm"):
            module.register_forward_hook(
                lambda _m, _i, output: maps.append(output.shape[2] * output.shape[3])
            )
    size = model.config.smallest_size
    model(torch.rand(2, 3, size, size))
    with pytest.raises(UserError, match=f"at least {size}×{size}"):
        model(torch.rand(2, 3, size - 1, size - 1))
    assert min(maps) >= 2


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("densenet121", {"activation": "tanh"}, "activation='tanh': must be one of 'relu', 'silu'"),
        (
            "resnet18",
            {"norm": "layer"},
            "norm='layer': must be one of 'batch', 'group', 'layer2d', 'instance', 'filter-response', "
            "'evonorm-s0', None",
        ),
        ("rdnet_tiny", {"activation": "tanh"}, "activation='tanh': must be one of 'relu', 'silu'"),
        (
            "densenet121",
            {"norm": "evonorm-s0", "activation": "silu"},
            "activation='silu': must be left out with norm=\"evonorm-s0\", which is a nonlinearity itself",
        ),
        ("resnetv2_50", {"norm": "filter-response", "activation": "gelu"}, "activation='gelu': must be left"),
        ("regnetx_002", {"activation": "tanh"}, "activation='tanh': must be one of 'relu', 'silu'"),
    ],
)
def test_what_there_is_not_is_one_line(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_config(name, **fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"norm": "instance"}, "its norm is an InstanceNorm2d, not a BatchNorm2d"),
        ({"norm": "filter-response"}, "its norm is a FilterResponseNorm, not a BatchNorm2d"),
        ({"norm": "evonorm-s0"}, "its norm is an EvoNormS0, not a BatchNorm2d"),
        ({"activation": "gelu"}, "its activation is not a ReLU"),
    ],
)
def test_executors_step_aside_and_say_why_and_the_engine_does_not(
    fields: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("densenet40_k12", num_classes=3, **NETWORKS["densenet40_k12"], **fields)
    with caplog.at_level(logging.WARNING, "skipnets"):
        model.set_block_execution("linear")
    assert "block_execution=linear: not applied to features.denseblock1" in caplog.text
    assert reason in caplog.text
    pytest.importorskip("skipnets_engine")
    from skipnets.models.registry import config_to_dict

    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    runtime = open_runtime("native", architecture=config_to_dict(model.config), tensors=tensors, device="cpu")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.eval()(images)
    torch.testing.assert_close(torch.from_numpy(runtime.logits(images.numpy())), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["filter-response", "evonorm-s0"])
def test_norms_are_traced_and_run_in_half_precision(norm: str) -> None:
    model = create_model("resnet18", num_classes=3, norm=norm, **NETWORKS["resnet18"]).eval()
    traced, images = torch.fx.symbolic_trace(model), torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(traced(images), model(images))
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), model(images), rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_every_network_with_every_norm_and_activation_computes_the_same_in_the_engine() -> None:
    """The graph tells what the module computes; norms and biases at random, so that none is hidden."""
    pytest.importorskip("skipnets_engine")
    from skipnets.models.registry import config_to_dict

    networks = NETWORKS | {
        "densenetblur121d": {"block_config": (2, 1), "growth_rate": 8},
        "seresnet50": {"block_config": (1, 1), "width": 16},
        "resnetrs50": {"block_config": (1, 1), "width": 16},
        "resnetv2_18": {"block_config": (1, 1), "width": 8},
        "resnetv2_50x1_bit": {"block_config": (1, 1), "width": 8},
        "regnety_002": {"block_config": (1, 1), "widths": (16, 24)},
    }
    images = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    for name, fields in networks.items():
        for norm, activation in itertools.product((*NORMS, *ACTIVATED_NORMS, None), ACTIVATIONS):
            follows_sums = name in (
                "resnet18",
                "resnet50",
                "seresnet50",
                "resnetrs50",
                "regnety_002",
                "rdnet_tiny",
            )
            if norm in ACTIVATED_NORMS and activation != "relu" and not follows_sums:
                continue  # refused: there would be no such activation
            config = model_config(name, num_classes=3, norm=norm, activation=activation, **fields)
            torch.manual_seed(0)
            model = build_model(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    nn.init.normal_(parameter, 0.5, 0.3)
            model.train()(images)  # so that running statistics are not those of a new network
            assert_equal_to_the_built_model(config)
            tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
            runtime = open_runtime(
                "native", architecture=config_to_dict(config), tensors=tensors, device="cpu"
            )
            with torch.no_grad():
                wanted = model.eval()(images)
            found = torch.from_numpy(runtime.logits(images.numpy()))
            difference = (found - wanted).abs().max() / wanted.abs().max()
            assert difference < 1e-4, (name, norm, activation)


def test_weights_of_a_network_with_another_activation_are_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    original = create_model("resnet18", num_classes=3, **NETWORKS["resnet18"])
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    model = create_model("resnet18", num_classes=3, activation="silu", **NETWORKS["resnet18"])
    with caplog.at_level(logging.WARNING, "skipnets"):
        load_weights(model, tmp_path / "weights.pt")
        assert caplog.text == ""
        create_model(
            "resnet18",
            num_classes=3,
            activation="silu",
            weights=tmp_path / "weights.pt",
            **NETWORKS["resnet18"],
        )
    assert "activation=silu: weights say nothing of activations" in caplog.text
