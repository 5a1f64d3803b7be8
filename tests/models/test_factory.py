from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from tests.helpers.networks import EVERY_NETWORK

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.factory import build_model
from skipnets.models.registry import REGISTRY, model_config
from skipnets.models.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_a_name_builds_the_network_of_its_configuration(name: str) -> None:
    with torch.device("meta"):
        model = build_model(REGISTRY[name])
    assert model.config == REGISTRY[name]
    assert model.training
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, REGISTRY[name].num_classes)


def test_fields_reach_the_layers() -> None:
    model = create_model("densenet121", num_classes=5, in_chans=1, growth_rate=12, block_config=(2, 3))
    assert model.config == model_config(
        "densenet121", num_classes=5, in_chans=1, growth_rate=12, block_config=(2, 3)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["features.conv0.weight"] == (24, 1, 7, 7)
    assert shapes["features.denseblock2.denselayer3.conv2.weight"] == (12, 48, 3, 3)
    assert shapes["classifier.weight"] == (5, model.num_features)
    assert not [name for name in shapes if "denseblock3" in name]


def test_initialization_is_drawn_anew_and_repeats_with_the_seed() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return create_model("resnet20").state_dict()["layer3.2.conv2.weight"]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_all_weights_of_a_file_are_loaded(tmp_path: Path) -> None:
    wanted = create_model("resnet20", num_classes=7)
    safetensors.torch.save_file(wanted.state_dict(), tmp_path / "w.safetensors")
    model = create_model("resnet20", num_classes=7, weights=tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert set(model.weights_report.mapping) == set(wanted.state_dict())
    assert create_model("resnet20").weights_report is None


def test_an_unknown_name_has_neighbors() -> None:
    with pytest.raises(UserError, match=r"densnet121.*did you mean densenet121"):
        create_model("densnet121")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet10t.c3_in1k", "hf-hub:timm/resnet10t.c3_in1k"),
        ("rdnet_tiny.nv_in1k", "hf-hub:naver-ai/rdnet_tiny.nv_in1k"),
        ("resnetv2_18.ra4_e3600_r224_in1k", "hf-hub:timm/resnetv2_18.ra4_e3600_r224_in1k"),
    ],
)
def test_tags_name_published_weights(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model(name).pretrained_cfg
    owner = published["hf_hub_id"]
    assert f"hf-hub:{owner}{name if owner.endswith('/') else ''}" == source
    asked: list[object] = []

    def read(source: object, *, model_name: str) -> Checkpoint:
        asked.append(source)
        return Checkpoint(source=str(source), tensors={}, ordered=True)

    monkeypatch.setattr("skipnets.models.weights.sources.read_source", read)
    monkeypatch.setattr("skipnets.models.weights.load_weights", lambda model, source, *, ignore: None)
    assert create_model(name, pretrained=True, num_classes=3).config.name == name.partition(".")[0]
    assert asked == [source]
    message = re.escape(f"model={name}: names published weights: needs pretrained=True, or ")
    for options in ({}, {"weights": "file.pt"}):
        with pytest.raises(UserError, match=message):
            create_model(name, **options)
    with pytest.raises(UserError, match=r"^model=vgg11.tv_in1k: must be a model's name"):
        create_model("vgg11.tv_in1k", pretrained=True)
