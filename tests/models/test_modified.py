from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tests.helpers.own_networks import se_densenet
from torch import nn

import skipnets
from skipnets.models.backbone import Backbone
from skipnets.models.densenet import DenseNet
from skipnets.models.modified import modification


def small(name: str = "densenet_bc40_k12") -> Backbone[DenseNet]:
    shape = {"block_config": (2, 1)}
    return skipnets.create_model(name, num_classes=3, **shape)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet121", "resnet20", "resnet10_w16"])
def test_a_new_model_is_not_modified(name: str) -> None:
    assert modification(small(name)) is None


@pytest.mark.parametrize("policy", ["auto", "linear", "linear-recompute", "plain"])
def test_neither_mode_nor_execution_nor_dropout_is_a_modification(policy: str) -> None:
    model = small().eval()
    model.set_block_execution(policy)  # type: ignore[arg-type]
    model.head_drop.p = 0.5  # type: ignore[assignment]
    assert modification(model) is None
    model.reset_classifier(7, "max")
    assert modification(model) is None


def _silu(model: nn.Module) -> None:
    model.features.relu5 = nn.SiLU()  # type: ignore[union-attr, assignment]


def _forward(model: nn.Module) -> None:
    model.features.relu5.forward = lambda x: x  # type: ignore[union-attr, assignment]


def _stride(model: nn.Module) -> None:
    model.features.conv0.stride = (2, 2)  # type: ignore[union-attr, assignment]


def _added(model: nn.Module) -> None:
    model.features.add_module("more", nn.Identity())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_silu, r"features.relu5 is SiLU\(\), in densenet_bc40_k12 it is ReLU\(\)"),
        (_forward, "features.relu5 is .*its forward replaced"),
        (_stride, "features.conv0 is Conv2d.*stride=.2, 2"),
        (_added, "features.more is .* it is not there"),
    ],
)
def test_what_is_changed_is_named(change: Callable[[nn.Module], None], named: str) -> None:
    model = small()
    change(model)
    found = modification(model)
    assert found is not None
    assert re.search(named, found), found


def test_a_block_inside_a_layer_is_a_modification() -> None:
    assert "denselayer2.conv2" in str(modification(se_densenet(3)))
