from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.helpers.own_networks import TinyNet
from torch import Tensor, nn

import skipnets
from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel, check_output, config_of, map_shapes

CONFIG = CustomConfig(name="Net", num_classes=3, in_chans=1)


def wrapped(network: nn.Module) -> CustomModel:
    return CustomModel.around(network, CONFIG)


def test_features_are_what_the_last_linear_layer_reads() -> None:
    network = TinyNet(3).eval()
    images = torch.rand(2, 1, 8, 8)
    model = wrapped(network)
    torch.testing.assert_close(model.embed(images), network.body(images).mean((2, 3)))
    torch.testing.assert_close(model(images), network(images))
    assert not network.head._forward_pre_hooks


def test_timm_s_methods_tell_the_features() -> None:
    network = skipnets.create_model("resnet8_w16", num_classes=3, in_chans=1).eval()
    images = torch.rand(2, 1, 16, 16)
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(wrapped(network).embed(images), expected)


def test_without_a_linear_layer_there_are_no_features() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="embed: Net has no linear layer of 3 outputs"):
        wrapped(network).embed(torch.rand(1, 1, 8, 8))


def test_map_shapes_are_those_of_hooks_in_order() -> None:
    assert map_shapes(TinyNet(3).eval(), torch.rand(1, 1, 8, 6)) == {
        "body.0": (8, 6),
        "body.1": (8, 6),
        "body.2": (8, 6),
        "body.3": (4, 3),
        "body.4": (4, 3),
        "body": (4, 3),
    }


def test_a_constructor_s_own_computation_survives() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

        def forward(self, x: Tensor) -> Any:
            return x * self.scale

    with torch.device("meta"):
        model = CustomModel(dataclasses.replace(CONFIG, build=Scaled))
    assert model.network(torch.ones(1)).item() == 2


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (TinyNet(4), r"must return an output for each of the 3 classes, .* shape \(2, 3\), not \(2, 4\)"),
        (TinyNet(3, in_chans=3), r"model: Net fails on images of shape \(2, 1, 8, 8\)"),
        (nn.Identity(), r"shape \(2, 3\), not \(2, 1, 8, 8\)"),
    ],
)
def test_a_wrong_output_is_one_line(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_output(wrapped(network), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "model: Net must make an nn.Module, not int"),
        (lambda: TinyNet(), "model: Net.* fails .*num_classes"),
    ],
)
def test_a_constructor_that_fails_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CustomModel(dataclasses.replace(CONFIG, build=make))


def test_what_wraps_a_module_is_not_in_the_names_of_its_tensors() -> None:
    network = TinyNet(3)
    for wrapper in (torch.compile(network, backend="eager"), nn.DataParallel(network)):
        config = config_of(wrapper, None, num_classes=3, in_chans=1)
        model = CustomModel.around(wrapper, config)
        assert config.name == "TinyNet"
        assert list(model.stored().state_dict()) == list(network.state_dict())
        assert model.skeleton() is network
