"""Where linear execution could not be right, a layer or stage steps aside, says why and runs plainly."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tests.helpers.block_policies import (
    SMALL,
    assert_ran,
    assert_same,
    copy_with,
    make_model,
    stepped_aside,
    train_once,
    without_running_statistics,
)
from tests.helpers.networks import SMALL_RDNET
from torch import nn

from skipnets.models import create_model
from skipnets.models.block_execution import MemoryEfficientDenseBlock

pytestmark = pytest.mark.usefixtures("small_chunks")


def _parametrize(model):
    nn.utils.parametrizations.weight_norm(model.features.denseblock1.denselayer1.conv1)


def _wrap(model):
    layer = model.features.denseblock1.denselayer1
    layer.conv1 = nn.Sequential(layer.conv1)


def _extend(model):
    model.features.denseblock1.denselayer1.add_module("extra", nn.Identity())


def _replace_norm(model):
    model.features.denseblock1.denselayer1.norm1 = nn.InstanceNorm2d(8, affine=True).double()


def _replace_activation(model):
    model.features.denseblock1.denselayer2.relu2 = nn.LeakyReLU()


def _freeze_norm(model):
    model.features.denseblock1.denselayer2.norm2.eval()


def _replace_forward(model):
    convolution = model.features.denseblock1.denselayer1.conv2
    convolution.forward = lambda x, plain=convolution.forward: plain(x) * 2


def _dilate(model):
    convolution = model.features.denseblock1.denselayer1.conv2
    convolution.dilation, convolution.padding = (2, 2), (2, 2)


def _without_affine(model):
    model.features.denseblock1.denselayer2.norm1 = nn.BatchNorm2d(12, affine=False).double()


def _synchronize(model):
    model.features.denseblock1.denselayer1.norm1 = nn.SyncBatchNorm(8).double()


ASIDE = {
    "parametrized": (_parametrize, "denselayer1: its convolution is a ParametrizedConv2d, not a Conv2d"),
    "wrapped": (_wrap, "denselayer1: its convolution is a Sequential, not a Conv2d"),
    "extended": (_extend, "denselayer1: it has other modules than"),
    "other norm": (_replace_norm, "denselayer1: its norm is an InstanceNorm2d, not a BatchNorm2d"),
    "other activation": (_replace_activation, "denselayer2: its activation is not a ReLU"),
    "norm in eval mode": (_freeze_norm, "denselayer2: a norm is in eval mode"),
    "replaced forward": (_replace_forward, "denselayer1: a module's forward is replaced"),
    "dilated": (_dilate, "denselayer1: a convolution has another padding than (1, 1)"),
    "no scale and shift": (_without_affine, "denselayer2: a norm has no scale and shift"),
    "forward hook": (
        lambda model: model.features.denseblock1.denselayer1.norm2.register_forward_hook(lambda *_: None),
        "denselayer1: hooks are registered on modules inside",
    ),
    "forward pre-hook": (
        lambda model: model.features.denseblock1.denselayer1.register_forward_pre_hook(lambda *_: None),
        "denselayer1: hooks are registered on modules inside",
    ),
    "backward hook": (
        lambda model: model.features.denseblock1.denselayer1.conv1.register_full_backward_hook(
            lambda *_: None
        ),
        "denselayer1: hooks are registered on modules inside",
    ),
}


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("case", ASIDE)
def test_a_layer_steps_aside_alone_with_the_reason(case, has_run):
    change, reason = ASIDE[case]
    layer, _, reason = reason.partition(": ")
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    if has_run:
        assert_same(train_once(linear, x), train_once(model, x))
        assert_ran(linear, "linear")
    change(model)
    torch.manual_seed(0)
    change(linear)
    # How it ran last, or would run now.
    assert (f"features.denseblock1.{layer}" in linear.block_execution_report()) is not has_run
    assert_same(train_once(linear, x), train_once(model, x))
    report = linear.block_execution_report()
    assert copy.deepcopy(linear).block_execution_report() == report
    assert report.pop(f"features.denseblock1.{layer}").startswith(f"plain: {reason}")
    assert set(report.values()) == {"linear"}


@pytest.mark.parametrize("apart", [(1,), (3,), (2, 3), (1, 5), (1, 3, 5)])
def test_layers_between_those_that_step_aside_keep_running_as_operations(apart):
    """With gates behind some layers, as a squeeze-and-excite block is, and one of another width."""
    model = make_model("densenet_bc40_k12", block_config=(5, 1), growth_rate=4)
    for number in apart:
        layer = model.features.denseblock1.get_submodule(f"denselayer{number}")
        layer.conv2 = nn.Sequential(layer.conv2, nn.Conv2d(4, 4, 1).double(), nn.Sigmoid())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for policy in ("linear", "linear-recompute"):
        changed = copy_with(model, policy)
        assert_same(train_once(changed, x), train_once(copy_with(model, "plain"), x))
        names = [f"features.denseblock1.denselayer{number}" for number in apart]
        assert stepped_aside(changed) == dict.fromkeys(names, "its convolution is a Sequential, not a Conv2d")
        assert changed.block_execution_report()["features.denseblock1"] == policy


def test_a_block_that_has_not_changed_is_not_checked_again(monkeypatch):
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    checked = []
    check = MemoryEfficientDenseBlock._unsupported_layers
    monkeypatch.setattr(
        MemoryEfficientDenseBlock, "_unsupported_layers", lambda block: checked.append(block) or check(block)
    )
    linear = copy_with(make_model(**SMALL), "linear")
    train_once(linear, x)
    blocks = len(checked)
    assert blocks > 0
    train_once(linear.eval().train(), x)
    assert len(checked) == blocks
    train_once(copy.deepcopy(linear), x)
    assert len(checked) == 2 * blocks


def test_a_block_that_was_checked_can_be_freed():
    linear = copy_with(make_model(**SMALL), "linear")
    train_once(linear, torch.randn(3, 3, 8, 8, dtype=torch.float64))
    block = weakref.ref(linear.features.denseblock1)
    del linear
    gc.collect()
    assert block() is None


def test_steps_aside_for_a_synchronized_norm():
    model = make_model(**SMALL)
    _synchronize(model)
    model.set_block_execution("linear")
    assert stepped_aside(model) == {
        "features.denseblock1.denselayer1": "its norm is a SyncBatchNorm, not a BatchNorm2d"
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"proj_drop_rate": 0.2}, "dropout"),
        ({"drop_path_rate": 0.5}, "stochastic depth"),
        ({"norm": "group"}, "its norm is a GroupNorm, not a BatchNorm2d"),
        ({"norm": None}, "its norm is an Identity, not a BatchNorm2d"),
    ],
    ids=str,
)
def test_steps_aside_for_what_a_config_can_ask(fields, reason):
    model = create_model("densenet_bc40_k12", **SMALL, **fields).double()
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    own = train_once(linear, x)
    torch.manual_seed(1)
    assert_same(own, train_once(model, x))
    assert stepped_aside(linear)["features.denseblock3"].endswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda transition: setattr(transition, "pool", nn.MaxPool2d(2)),
            "its pooling is not the average of 2×2",
        ),
        (lambda transition: setattr(transition, "relu", nn.GELU()), "its activation is not a ReLU"),
        (
            lambda transition: transition.append(nn.Identity()),
            "it has other modules than norm, relu, conv and pool",
        ),
        (lambda transition: transition.norm.eval(), "a norm is in eval mode"),
        (lambda transition: transition.conv.register_forward_hook(lambda *_: None), "hooks are registered"),
    ],
)
def test_a_transition_steps_aside_alone(change, reason):
    model = make_model(**SMALL)
    change(model.features.transition1)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    aside = stepped_aside(linear)
    assert list(aside) == ["features.transition1"]
    assert aside["features.transition1"].startswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda features: setattr(features, "pool0", nn.AvgPool2d(3, 2, 1)),
            "its pooling is not the maximum",
        ),
        (lambda features: setattr(features, "relu0", nn.GELU()), "its activation is not a ReLU"),
        (lambda features: features.norm0.eval(), "a norm is in eval mode"),
        (lambda features: features.relu0.register_forward_hook(lambda *_: None), "hooks are registered"),
        (
            lambda features: setattr(features.conv0, "stride", (1, 1)),
            "a convolution has another stride than (2, 2)",
        ),
    ],
)
def test_a_stem_steps_aside_alone(change, reason):
    model = make_model("densenet121", **SMALL)
    linear = copy_with(model, "linear")
    change(model.features)
    change(linear.features)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    aside = stepped_aside(linear)
    assert list(aside) == ["stem"]
    assert aside["stem"].startswith(reason)


def test_steps_aside_in_eval_mode():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear").eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(linear(x), model.eval()(x))
    assert set(stepped_aside(linear).values()) == {"eval mode"}


def test_steps_aside_for_global_hooks():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    try:
        linear(torch.randn(3, 3, 8, 8, dtype=torch.float64))
    finally:
        handle.remove()
    assert set(stepped_aside(linear).values()) == {"global module hooks are registered"}
    assert calls.count(nn.ReLU) == 2 * 7 + 2 + 1


def test_steps_aside_for_types_and_subclasses():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear").bfloat16()
    model(torch.randn(3, 3, 8, 8, dtype=torch.bfloat16))
    assert set(stepped_aside(model).values()) == {"parameters are not all of float32 or all of float64"}

    class Marked(torch.Tensor):
        pass

    model = copy_with(make_model(**SMALL), "linear")
    model(torch.randn(3, 3, 8, 8, dtype=torch.float64).as_subclass(Marked))
    assert set(stepped_aside(model).values()) == {"a tensor subclass is in use"}


def test_steps_aside_in_inference_mode():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(linear(x), model(x))
    assert set(stepped_aside(linear).values()) == {"the input is sparse or an inference tensor"}


def test_steps_aside_for_function_transforms():
    model = without_running_statistics(make_model(**SMALL))
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    gradients = [torch.func.grad(lambda given, run=run: run(given).sum())(x) for run in (linear, model)]
    torch.testing.assert_close(*gradients)
    assert set(stepped_aside(linear).values()) == {"a function transform (torch.func) is active"}


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning"
)  # PyTorch's own use of it
def test_steps_aside_for_forward_mode():
    model = without_running_statistics(make_model(**SMALL))
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    tangents = []
    for run in (linear, model):
        with torch.autograd.forward_ad.dual_level():
            output = run(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            tangents.append(torch.autograd.forward_ad.unpack_dual(output).tangent)
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("policy", ["linear", "auto"])
@pytest.mark.parametrize(
    ("name", "fields", "inside"),
    [
        ("densenet_bc40_k12", SMALL, "features_denseblock1_denselayer1_conv1"),
        ("resnet20", {"block_config": (1, 1), "width": 4}, "layer1_0_conv1"),
        ("rdnet_tiny", SMALL_RDNET, "dense_stages_0_0_dense_block0_layers_layers_0"),
    ],
)
def test_steps_aside_for_tracers(name, fields, inside, policy):
    model = copy_with(make_model(name, **fields), policy)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = copy_with(model, "plain").eval()(x)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model)).eval()
    assert inside in {node.name for node in traced.graph.nodes}
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_relu_that_was_taken_out_is_not_applied(dims):
    model = make_model(**SMALL, dims=dims)
    model.features.denseblock1.denselayer2.relu1 = nn.Identity()
    model.features.transition1.relu = nn.Identity()
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, *(8,) * dims, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    assert stepped_aside(linear) == dict.fromkeys(
        ("features.denseblock1.denselayer2", "features.transition1"), "its activation is not a ReLU"
    )
