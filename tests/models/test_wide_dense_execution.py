"""RDNet's dense blocks as one operation must give the plain path's numbers, or step aside and say why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.helpers.block_policies import assert_same
from tests.helpers.networks import SMALL_RDNET
from torch import Tensor, nn

from skipnets.models import create_model
from skipnets.models.layers import LayerNorm2d

BLOCKS = ("dense_stages.0.0", "dense_stages.1.2", "dense_stages.2.2")


def make_model(policy: str = "plain", **fields: Any) -> Any:
    """A float64 model; layer scale begins near 0, which would hide the branches."""
    torch.manual_seed(0)
    model = create_model("rdnet_tiny", num_classes=5, **(SMALL_RDNET | fields)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.set_block_execution(policy)
    return model


def images() -> Tensor:
    return torch.randn(3, 3, 37, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def train_once(model: Any) -> dict[str, Tensor]:
    x = images().requires_grad_()
    torch.manual_seed(3)
    output = model(x)
    output.square().sum().backward()
    made = {"output": output.detach(), "input": x.grad}
    return made | {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fields", [{}, {"drop_path_rate": 0.5, "layer_scale": 0}], ids=["", "drops"])
@pytest.mark.parametrize("policy", ["linear", "linear-recompute"])
def test_equals_plain(policy: str, fields: dict[str, Any]) -> None:
    plain, model = make_model(**fields), make_model(policy, **fields)
    expected, found = train_once(plain), train_once(model)
    assert_same(found, expected, relative=1e-11, absolute=1e-14)
    assert model.block_execution_report() == dict.fromkeys(BLOCKS, policy)
    assert plain.block_execution_report() == dict.fromkeys(BLOCKS, "plain")
    torch.testing.assert_close(model.eval()(images()), plain.eval()(images()))


def test_switching_back_and_copies() -> None:
    model = make_model("linear")
    assert copy.deepcopy(model).block_execution_report() == model.block_execution_report()
    names = list(model.state_dict())
    model.set_grad_checkpointing()
    assert model.block_execution_report() == dict.fromkeys(BLOCKS, "linear-recompute")
    model.set_grad_checkpointing(False)
    assert type(model) is type(make_model())
    assert list(model.state_dict()) == names


def test_auto_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    from skipnets.models import execution_choice
    from skipnets.ops.choices import Choices

    monkeypatch.setattr(execution_choice, "CHOICES", Choices(None))
    model = make_model("auto").float()
    model(images().float())
    assert model.measured in ("plain", "linear")
    found = {how.split(":")[0] for how in model.block_execution_report().values()}
    assert found == {model.measured}


def _set(path: str, name: str, value: object) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


LAYER = "dense_stages.2.2.dense_block1"
ASIDE: dict[str, tuple[Callable[[Any], object], str]] = {
    "dropout": (_set(f"{LAYER}.dropout", "p", 0.5), "dense_block1: dropout"),
    "another norm": (_set(f"{LAYER}.layers.layers", "1", nn.GroupNorm(2, 56)), "its norm is a GroupNorm"),
    "another activation": (_set(f"{LAYER}.layers.layers", "3", nn.ReLU()), "its activation is not a GELU"),
    "no activation": (
        _set(f"{LAYER}.layers", "layers", nn.Sequential(nn.Conv2d(40, 24, 1), LayerNorm2d(24))),
        "its modules are not two",
    ),
    "another GELU": (_set(f"{LAYER}.layers.layers.3", "approximate", "tanh"), "its GELU is an approximation"),
    "another convolution": (_set(f"{LAYER}.layers.layers.0", "dilation", (2, 2)), "another dilation than"),
    "no bias": (_set(f"{LAYER}.layers.layers.2", "bias", None), "a convolution has no bias"),
    "another module": (_set(LAYER, "attention", nn.Identity()), "it has other modules than layers"),
    "another layer": (_set("dense_stages.2.2", "dense_block1", nn.Identity()), "it is a Identity, none of"),
    "a hook": (
        lambda model: model.get_submodule(LAYER).register_forward_hook(lambda *_: None),
        "hooks are registered on modules inside",
    ),
    "eval mode": (lambda model: model.dense_stages[2].eval(), "eval mode"),
}


@pytest.mark.parametrize("case", ASIDE)
def test_steps_aside_with_the_reason(case: str) -> None:
    change, reason = ASIDE[case]
    model = make_model("linear")
    model.train()(images())
    assert set(model.block_execution_report().values()) == {"linear"}
    change(model)
    model.dense_stages[2][2].has_run = False
    found = model.block_execution_report()
    whole = case in ("eval mode", "dropout")  # that is asked for of all layers
    how = found.pop(BLOCKS[2] if whole else LAYER)
    assert how.startswith("plain: ")
    assert reason in how
    assert set(found.values()) == {"linear"}


@pytest.mark.parametrize("apart", [(0,), (3,), (1, 2), (0, 2)])
def test_layers_between_those_that_step_aside_keep_running_as_operations(apart: tuple[int, ...]) -> None:
    models = [make_model(policy, block_config=(4, 1, 2)) for policy in ("plain", "linear")]
    for model in models:
        for number in apart:
            layers = model.get_submodule(f"{BLOCKS[0]}.dense_block{number}.layers.layers")
            layers.append(nn.Sigmoid())
    expected, found = (train_once(model) for model in models)
    assert_same(found, expected, relative=1e-11, absolute=1e-14)
    report = models[1].block_execution_report()
    for number in apart:
        assert report.pop(f"{BLOCKS[0]}.dense_block{number}").startswith("plain: its modules are not two")
    assert report == dict.fromkeys(BLOCKS, "linear")


def test_another_norm_is_said(caplog: pytest.LogCaptureFixture) -> None:
    make_model("linear", norm="group")
    assert "block_execution=linear: not applied to dense_stages.0.0" in caplog.text
    assert "its norm is a GroupNorm, not a LayerNorm2d" in caplog.text


def test_autocast_runs_layer_by_layer() -> None:
    model = make_model("linear").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images().float())
    assert set(model.block_execution_report().values()) == {"plain: autocast is on"}


@pytest.mark.slow
def test_exports_run_layer_by_layer() -> None:
    model, x = make_model("linear").float(), images().float()
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-4)
