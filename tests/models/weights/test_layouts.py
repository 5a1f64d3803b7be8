"""Known names and wrappers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.weights import load_weights


def test_names_from_before_torchvision_0_3(make_densenet, stirred, write, assert_same):
    tensors = stirred(make_densenet())
    old = {
        re.sub(r"(denselayer\d+)\.(norm|conv)(\d)\.", r"\1.\2.\3.", name): tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer2.norm.2.running_var" in old
    model = make_densenet()
    report = load_weights(model, write(old))
    assert report.layout == "named as in torchvision before 0.3"
    assert_same(model, {**model.state_dict(), **{name: tensors[name] for name in report.mapping}})
    assert len(report.mapping) == len(old)
    assert "denselayer1.norm1.weight" in str(report)


def test_two_spellings_of_one_name_are_refused(make_densenet, stirred, write):
    tensors = stirred(make_densenet())
    old = {name.replace("layer1.norm1", "layer1.norm.1"): tensor for name, tensor in tensors.items()}
    twice = "features.denseblock2.denselayer1.norm1.weight"
    with pytest.raises(UserError, match="unexpected: "):
        load_weights(make_densenet(), write({**old, twice: tensors[twice]}))


WRAPPED = {
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "best_acc": 0.5},
    "model": lambda tensors: {"model": tensors, "args": {"lr": 0.1}, "optimizer": {"state": {}}},
    "ema": lambda tensors: {"ema": tensors},
    "nested": lambda tensors: {"ema": {"module": {f"module.{k}": t for k, t in tensors.items()}}},
    "data parallel": lambda tensors: {f"module.{k}": t for k, t in tensors.items()},
    "compiled": lambda tensors: {f"_orig_mod.{k}": t for k, t in tensors.items()},
    "compiled and parallel": lambda tensors: {f"module._orig_mod.{k}": t for k, t in tensors.items()},
    "lightning": lambda tensors: {
        "state_dict": {f"model.{k}": t for k, t in tensors.items()},
        "pytorch-lightning_version": "2.6.6",
        "callbacks": {},
        "loops": {},
    },
    "other attribute": lambda tensors: {f"net.backbone.{k}": t for k, t in tensors.items()},
    "parameters": lambda tensors: {
        k: nn.Parameter(t) if t.is_floating_point() else t for k, t in tensors.items()
    },
    "beside numbers": lambda tensors: {**tensors, "epoch": 3},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers(wrap, make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    report = load_weights(model, write(wrap(tensors)))
    assert_same(model, tensors)
    assert report.layout == "named as in torchvision and timm"
    assert report.notes == ()


def test_averaged_model_of_torch(make, stirred, write, assert_same):
    averaged = torch.optim.swa_utils.AveragedModel(make())
    tensors = stirred(averaged.module)
    model = make()
    load_weights(model, write({"model_ema": averaged.state_dict()}))
    assert_same(model, tensors)


@pytest.mark.parametrize(("average", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model")])
def test_averaged_weights_come_first_and_it_is_said(average, plain, make, stirred, write, assert_same):
    averaged, raw = stirred(make()), stirred(make())
    model = make()
    report = load_weights(model, write({plain: raw, average: averaged}))
    assert_same(model, averaged)
    assert report.notes == (f"loaded from '{average}'; the file also has '{plain}'",)


def test_an_empty_average_does_not_count(make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    report = load_weights(model, write({"state_dict_ema": None, "ema": {}, "state_dict": tensors}))
    assert_same(model, tensors)
    assert report.notes == ()


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ({"optimizer": {"state": torch.ones(2)}, "epoch": 1}, "only 'optimizer', 'epoch'"),
        ({}, "only nothing"),
        ([torch.ones(2)], "only list"),
        (torch.ones(2), "only Tensor"),
    ],
)
def test_a_missing_state_dict_lists_the_contents(value, holds, write):
    with pytest.raises(UserError, match=holds):
        create_model("resnet20", weights=write(value))


def test_a_checkpoint_that_holds_itself(write):
    endless = {}
    endless["model"] = endless
    with pytest.raises(UserError, match="has no state dict"):
        create_model("resnet20", weights=write(endless))


def test_own_prefix_is_not_removed_as_a_wrapper(make_densenet, stirred, write, assert_same):
    body = {k: t for k, t in stirred(make_densenet()).items() if k.startswith("features.")}
    model = make_densenet(num_classes=0)
    report = load_weights(model, write(body))
    assert_same(model, body)
    assert report.layout == "named as in torchvision and timm"
