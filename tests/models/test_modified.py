from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.networks import SMALL_RDNET
from tests.helpers.own_networks import Pyramid, group_densenet, se_densenet, silu_densenet
from torch import nn

import skipnets
from skipnets.models.backbone import Backbone
from skipnets.models.block_execution import execution_report, set_block_execution
from skipnets.models.densenet import DenseNet
from skipnets.models.modified import modification


def small(name: str = "densenet_bc40_k12") -> Backbone[DenseNet]:
    shape = {"block_config": (2, 1)}
    return skipnets.create_model(name, num_classes=3, **shape)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet121", "resnet20", "resnet10_w16"])
def test_a_new_model_is_not_modified(name: str) -> None:
    assert modification(small(name)) is None


SMALL: dict[str, dict[str, Any]] = {
    "densenet121": {"block_config": (1,), "growth_rate": 4},
    "resnet18": {"block_config": (1,), "width": 8},
    "resnet50": {"block_config": (1,), "width": 8},
    "rdnet_tiny": SMALL_RDNET,
}


@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_itself_however_its_blocks_run(name: str) -> None:
    """A run saves its network as it trains, whose modules have other classes then."""
    model = skipnets.create_model(name, num_classes=3, **SMALL[name])
    plain = type(model)
    for policy in ("auto", "linear"):
        model.set_block_execution(policy, warn=False)
        assert type(model) is not plain
        assert modification(model) is None


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


CHANGES: list[tuple[Callable[..., nn.Module], dict[str, str]]] = [
    (se_densenet, {"features.denseblock1.denselayer2": "its convolution is a Sequential, not a Conv2d"}),
    (silu_densenet, {"features.transition1": "its activation is not a ReLU"}),
    (group_densenet, {"features.denseblock2.denselayer1": "its norm is a GroupNorm, not a BatchNorm2d"}),
    (Pyramid, {}),
]


@pytest.mark.parametrize("make", [make for make, _ in CHANGES])
def test_what_is_made_of_this_package_s_networks_is_saved_and_loaded_by_what_makes_it(
    make: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = make(3, 1).train()
    model(torch.rand(4, 1, 16, 16))  # so that the statistics of norms are not those of a new one
    path, name = tmp_path / "model.safetensors", f"tests.helpers.own_networks:{make.__name__}"
    about = {"classes": ["a", "b", "c"], "preprocessing": skipnets.Preprocessing(size=16, channels=1)}
    made_by = {"import": name, "arguments": {"num_classes": 3, "in_chans": 1}}
    skipnets.Classifier.from_model(model, architecture=made_by, **about).save(path)  # type: ignore[arg-type]
    batch = np.random.default_rng(0).normal(size=(2, 1, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(batch)).numpy()
    for options in ({"trust": name}, {"model": make(3, 1)}):
        loaded = skipnets.load(path, device="cpu", **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(loaded.logits(batch), expected, atol=1e-6)


@pytest.mark.parametrize(("make", "refused"), CHANGES)
def test_blocks_that_are_unchanged_run_in_linear_memory_and_others_are_said_with_the_reason(
    make: Callable[..., nn.Module], refused: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    images, results = torch.rand(4, 1, 16, 16), []
    for policy in ("plain", "linear"):
        torch.manual_seed(0)
        model = make(3, 1).double().train()
        with caplog.at_level(logging.WARNING, "skipnets"):
            set_block_execution(model, policy)  # type: ignore[arg-type]
        loss = model(images.double()).square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        results.append((loss, [each for each in gradients if each is not None]))
    torch.testing.assert_close(results[0], results[1])
    report = execution_report(model)
    blocks = {path.removeprefix("backbone."): how for path, how in report.items()}
    assert {path for path, how in blocks.items() if how.startswith("plain")} == set(refused)
    assert {how for path, how in blocks.items() if path not in refused} == {"linear"}
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"warning: block_execution=linear: not applied to {path}, which will run plainly: {reason}"
        for path, reason in refused.items()
    ]
