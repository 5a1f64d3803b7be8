"""Pre-activation ResNets and BiT, against timm's."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import StdConv2d
from timm.models import group_parameters
from timm.models.resnetv2 import ResNetV2 as TimmResNetV2
from torch import Tensor, nn

import skipnets
from skipnets.insight import draw_diagram
from skipnets.insight.attribution import explain, stage_names
from skipnets.models import create_model, network_graph
from skipnets.models.resnetv2_graph import RESNETV2S

# One of each kind; the others differ in depth and width.
KINDS = ["resnetv2_18d", "resnetv2_50", "resnetv2_50t", "resnetv2_50d_gn", "resnetv2_50x1_bit"]
BIT: dict[str, Any] = {"stem_type": "fixed", "conv_layer": functools.partial(StdConv2d, eps=1e-8)}


@pytest.mark.parametrize(
    "name",
    [
        row.name if row.name in KINDS[1:3] else pytest.param(row.name, marks=pytest.mark.slow)
        for row in RESNETV2S
    ],
)
def test_names_and_shapes_are_timm_s(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    expected = [(key, tuple(value.shape)) for key, value in theirs.state_dict().items()]
    assert [(key, tuple(value.shape)) for key, value in ours.state_dict().items()] == expected
    assert list(network_graph(ours.config).tensors().items()) == expected
    for key in ("num_chs", "reduction", "module"):
        assert [info[key] for info in ours.feature_info] == [info[key] for info in theirs.feature_info]
    for key in ("first_conv", "classifier"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    for coarse in (False, True):
        expected_groups = group_parameters(theirs, theirs.group_matcher(coarse))
        assert group_parameters(ours, ours.group_matcher(coarse)) == expected_groups


def short(name: str, **rates: Any) -> tuple[nn.Module, Any]:
    """timm's network and ours with a block a stage and the same random parameters."""
    torch.manual_seed(0)
    layers = (1, 1, 1, 1)
    if "bit" in name:
        theirs: nn.Module = TimmResNetV2(layers=list(layers), num_classes=5, **BIT, **rates)
    else:
        theirs = timm.create_model(name, layers=layers, num_classes=5, **rates)
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms begin alike, which would hide a mix-up
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) / 2)
    ours = create_model(name, block_config=layers, num_classes=5, **rates)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
def test_outputs_gradients_and_buffers_are_timm_s(name: str) -> None:
    theirs, ours = short(name, drop_path_rate=0.3)
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        outputs.append(model.train()(images(2, 3, 64, 64)))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        atol = 1e-4 * float(expected.grad.abs().max() + 1e-9)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs, ours = theirs.double().eval(), ours.double().eval()
    x = images(1, 3, 57, 70).double()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        for norm in (False, True):
            arguments: dict[str, Any] = {"norm": norm, "stop_early": True, "intermediates_only": True}
            expected = theirs.forward_intermediates(x, **arguments)
            torch.testing.assert_close(ours.forward_intermediates(x, **arguments), expected)
        torch.testing.assert_close(ours.forward_intermediates(x)[0], theirs.forward_features(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in RESNETV2S if "x" not in row.name])
def test_whole_networks_are_timm_s(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name)
    with torch.no_grad():
        theirs(torch.randn(4, 3, 96, 96))  # settles running statistics
    ours = create_model(name).eval()
    ours.load_state_dict(theirs.eval().state_dict())
    outputs = [model(images(1, 3, 96, 96)) for model in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().mean().backward()
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        atol = 1e-4 * float(expected.grad.abs().max())
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol)


def test_a_new_network_begins_like_timm_s() -> None:
    theirs, ours = timm.create_model("resnetv2_18"), create_model("resnetv2_18")
    for (name, expected), found in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if "conv" in name:
            spread = [float(parameter.detach().std()) for parameter in (expected, found)]
            assert spread[1] == pytest.approx(spread[0], rel=0.1), name
    assert not ours.get_classifier().bias.any()


@pytest.mark.parametrize("indices", [1, (0,), (1, 2), None])
@pytest.mark.parametrize("prune_norm", [False, True])
def test_feature_extractors_are_timm_s(indices: Any, prune_norm: bool) -> None:
    theirs, ours = short("resnetv2_18d")
    x = images(1, 3, 57, 70)
    with torch.no_grad():
        expected = theirs.eval().forward_intermediates(x, indices, intermediates_only=True)
        kept = ours.eval().prune_intermediate_layers(indices, prune_norm)
        assert kept == theirs.prune_intermediate_layers(indices, prune_norm)
        found = ours.forward_intermediates(x, kept, intermediates_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if kept[-1] == 4:
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_heads_are_replaced_and_fitted() -> None:
    _, model = short("resnetv2_18d")
    model.reset_classifier(3, "catavgmax")
    assert model.head.fc.weight.shape == (3, 1024, 1, 1)
    assert model(images(2, 3, 32, 32)).shape == (2, 3)
    from skipnets.training.head import fit_head

    x, labels = images(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    fit_head(model, [(x, labels)])
    with torch.no_grad():
        assert model.eval()(x).argmax(1).tolist() == labels.tolist()


def test_a_folder_of_timm_s_layout_brings_weights_and_preprocessing(tmp_path: Path) -> None:
    """Also for another number of classes, channels, or for no head."""
    theirs, _ = short("resnetv2_18d")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    published = {"input_size": [3, 48, 48], "crop_pct": 0.95, "interpolation": "bicubic"}
    published |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "resnetv2_18d", "pretrained_cfg": published}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def load(**fields: Any) -> Any:
        return create_model("resnetv2_18d", weights=tmp_path, block_config=(1, 1, 1, 1), **fields).eval()

    x = images(1, 3, 48, 48)
    model = load(num_classes=5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
        features = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(load(num_classes=0)(x), features, rtol=1e-5, atol=1e-5)
    other = load(num_classes=7, in_chans=1)
    assert len(other.weights_report.changes) == 2
    assert other.head.fc.weight.shape == (7, 512, 1, 1)
    classifier = skipnets.Classifier.from_model(model, classes=list("abcde"))
    assert (classifier.preprocessing.size, classifier.preprocessing.mean) == ((48, 48), (0.5,) * 3)


def test_insight_has_its_stages(tmp_path: Path) -> None:
    model = create_model("resnetv2_50x1_bit", width=16, block_config=(1, 2), num_classes=3).eval()
    classifier = skipnets.Classifier.from_model(
        model, classes=["a", "b", "c"], preprocessing=skipnets.Preprocessing(size=32)
    )
    assert stage_names(classifier) == ["pool", "stages.0", "stages.1"]
    ((explanation,),) = explain(classifier, [Image.new("RGB", (32, 32))], stage="stages.0")
    assert (explanation.stage, explanation.grid.shape) == ("stages.1.blocks.0.act1", (8, 8))
    draw_diagram(model.config, output=tmp_path / "network.svg")
    drawing = (tmp_path / "network.svg").read_text()
    assert "projection" in drawing
