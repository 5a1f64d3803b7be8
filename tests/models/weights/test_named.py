"""Weights of one's own networks, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.own_networks import TinyNet
from torch import Tensor, nn

from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel
from skipnets.models.weights.named import load_named_weights


def model_of(classes: int = 3) -> CustomModel:
    torch.manual_seed(1)
    config = CustomConfig(name="TinyNet", num_classes=classes, in_chans=1)
    return CustomModel.around(TinyNet(classes), config)


def saved(path: Path, tensors: dict[str, Any], prefix: str = "") -> Path:
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in tensors.items()}}, path)
    return path


@pytest.fixture
def theirs() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return TinyNet(3).state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_they_are_those_of_the_file(
    theirs: dict[str, Tensor], prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of()
    more = {"projection.0.weight": torch.ones(2, 2)}
    with caplog.at_level("WARNING", "skipnets"):
        load_named_weights(
            model, saved(tmp_path / "w.pth", theirs | more, prefix), ignore=[f"{prefix}projection.*"]
        )
    assert f"ignored: {prefix}projection.0.weight" in caplog.text
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("headless", [False, True])
def test_a_head_for_other_classes_is_new_and_said(
    theirs: dict[str, Tensor], headless: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if headless:
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("head")}
    model, fresh = model_of(5), model_of(5).network.state_dict()
    load_named_weights(model, saved(tmp_path / "w.pth", theirs))
    assert "newly initialized, as for other classes: head.weight, head.bias" in caplog.text
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("head") else theirs[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("body.0.weight"), "missing: body.0.weight"),
        (
            lambda tensors: tensors.update({"more": torch.ones(1)}),
            "unexpected: more; weights_ignore leaves tensors out",
        ),
        (
            lambda tensors: tensors.update({"body.0.bias": torch.ones(5)}),
            r"of another shape: body\.0\.bias \(5,\) for \(4,\)",
        ),
    ],
)
def test_other_names_and_shapes_are_one_line_and_change_nothing(
    theirs: dict[str, Tensor], change: Any, message: str, tmp_path: Path
) -> None:
    change(theirs)
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"^weights: .*w.pth does not match TinyNet: .*{message}"):
        load_named_weights(model, saved(tmp_path / "w.pth", theirs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_published_names_are_of_other_networks() -> None:
    with pytest.raises(UserError, match="weights=imagenet: must be a file for TinyNet"):
        load_named_weights(model_of(), "imagenet")


def test_the_state_of_lightning_s_metrics_is_left_out(
    theirs: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Metric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.ones(1))

    content = {"pytorch-lightning_version": "2.5.0", "epoch": 1, "global_step": 2, "loops": {}}
    tensors = {f"net.{name}": tensor for name, tensor in theirs.items()}
    tensors |= {f"metric.{name}": tensor for name, tensor in Metric().state_dict().items()}
    torch.save(content | {"state_dict": tensors}, tmp_path / "last.ckpt")
    model = model_of()
    load_named_weights(model, tmp_path / "last.ckpt")
    assert torch.equal(model.network.state_dict()["head.weight"], theirs["head.weight"])
    assert "metric" in caplog.text
