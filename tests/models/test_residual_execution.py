"""Residual blocks as one operation must give the plain path's numbers, or step aside and say why."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.block_policies import assert_same, copy_with, make_model, stepped_aside, train_once
from torch import nn

from skipnets.errors import UserError
from skipnets.models import create_model

SMALL = {"block_config": (2, 1), "width": 4, "num_classes": 3}
CASES = {
    "basic": ("resnet20", SMALL),
    "projection": ("resnet18", SMALL),
    "bottleneck": ("resnet50", SMALL),
    "stride first": ("resnet50", {**SMALL, "stride_in": "1x1"}),
}


def make_small(name="resnet20", **fields):
    return make_model(name, **{**SMALL, **fields})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_equals_plain(case, memory_format):
    name, fields = CASES[case]
    plain = make_small(name, **fields).to(memory_format=memory_format)
    linear = copy_with(plain, "linear")
    x = torch.randn(3, 3, 37, 26, dtype=torch.float64).contiguous(memory_format=memory_format)
    assert_same(train_once(linear, x), train_once(plain, x))
    assert linear.block_execution_report() == dict.fromkeys(
        ("stem", "layer1.0", "layer1.1", "layer2.0"), "linear"
    )
    assert set(plain.block_execution_report().values()) == {"plain"}


def test_norms_whose_tracking_is_switched_off():
    plain = make_small("resnet18")
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    linear = copy_with(plain, "linear")
    before = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    x = torch.randn(3, 3, 37, 26, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(plain, x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in linear.named_buffers())
    assert stepped_aside(linear) == {}


def test_switching_back_and_copies():
    model = make_small()
    model.set_block_execution("linear")
    assert copy.deepcopy(model).block_execution_report() == model.block_execution_report()
    names = list(model.state_dict())
    model.set_block_execution("plain")
    assert type(model) is type(make_small())
    assert list(model.state_dict()) == names


def test_auto_measures_and_says_what_is_fastest(monkeypatch):
    from skipnets.models import execution_choice, switched_module
    from skipnets.ops.choices import Choices

    monkeypatch.setattr(execution_choice, "CHOICES", Choices(None))
    model = copy_with(make_small().float(), "auto")
    for policy in ("plain", "linear"):
        execution = execution_choice.Execution(policy, channels_last=False)
        monkeypatch.setattr(switched_module, "fastest_execution", lambda *_, e=execution, **__: e)
        own = copy.deepcopy(model)
        own(torch.randn(2, 3, 8, 8))
        found = {text.split(":")[0] for text in own.block_execution_report().values()}
        assert found == {policy}
    own = copy.deepcopy(model)
    monkeypatch.undo()
    monkeypatch.setattr(execution_choice, "CHOICES", Choices(None))
    own(torch.randn(2, 3, 8, 8))
    assert own.measured in ("plain", "linear")


def test_dense_blocks_alone_can_be_recomputed():
    with pytest.raises(
        UserError, match=r"^block_execution=\"linear-recompute\": must be auto, plain or linear"
    ):
        make_small().set_block_execution("linear-recompute")


def _set(path, name, value):
    def change(model):
        setattr(model.get_submodule(path), name, value)

    return change


def _replace(path, module):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)

    return change


ASIDE = {
    "dropout": (_set("layer1.0.dropout", "p", 0.5), "dropout"),
    "stochastic depth": (_set("layer1.0.drop_path", "p", 0.5), "stochastic depth"),
    "norm in eval mode": (lambda model: model.layer1[0].bn2.eval(), "a norm is in eval mode"),
    "another norm": (_replace("layer1.0.bn1", nn.GroupNorm(2, 4)), "its norm is a GroupNorm"),
    "another activation": (_replace("layer1.0.relu1", nn.GELU()), "its activation is not a ReLU"),
    "another convolution": (_set("layer1.0.conv2", "dilation", (2, 2)), "another dilation"),
    "another module": (_replace("layer1.0.attention", nn.Identity()), "it has other modules than conv1"),
    "a hook": (
        lambda model: model.layer1[0].bn1.register_forward_hook(lambda *_: None),
        "hooks are registered on modules inside",
    ),
    "another shortcut": (_replace("layer1.0.downsample", nn.Identity()), "its shortcut is not a convolution"),
}


@pytest.mark.parametrize("case", ASIDE)
def test_steps_aside_with_the_reason(case):
    change, reason = ASIDE[case]
    model = copy_with(make_small(), "linear")
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert stepped_aside(model) == {}
    change(model)
    model.layer1[0].has_run = False
    found = stepped_aside(model)
    assert list(found) == ["layer1.0"]
    assert reason in found["layer1.0"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"norm": None}, "a convolution has another bias"),
        ({"norm": "group"}, "its norm is a GroupNorm"),
        ({"model_name": "resnext50_32x4d", "width": 64, "block_config": (1,)}, "another groups"),
        ({"proj_drop_rate": 0.1}, "dropout"),
    ],
    ids=str,
)
def test_steps_aside_for_what_a_config_can_ask(fields, reason):
    model = create_model(**{"model_name": "resnet20", **SMALL, **fields})
    model.set_block_execution("linear")
    assert all(reason in found for found in stepped_aside(model).values())
    assert stepped_aside(model)


def test_steps_aside_in_eval_mode_and_under_autocast():
    model = copy_with(make_small().float(), "linear")
    model.eval()(torch.randn(2, 3, 8, 8))
    assert set(stepped_aside(model).values()) == {"eval mode"}
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert list(stepped_aside(model)) == ["stem", "layer1.0", "layer1.1", "layer2.0"]


def test_one_value_a_channel_is_plains_own_error():
    model = copy_with(make_small(), "linear")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, 3, 2, 2, dtype=torch.float64))
