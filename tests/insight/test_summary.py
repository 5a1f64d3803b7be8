"""The table: formulas, folding, formats."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
import torchinfo
from rich.console import Console
from tests.helpers.networks import EVERY_NETWORK
from tests.helpers.own_networks import TinyNet, se_densenet
from torch.utils.flop_counter import FlopCounterMode

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.insight import summarize
from skipnets.models import create_model
from skipnets.tables import as_text
from skipnets.trust import trusting

TINY = "tests.helpers.own_networks:TinyNet"


@pytest.mark.parametrize(
    ("name", "fields", "path", "formula"),
    [
        ("densenet121", {}, "features.denseblock1.denselayer1.conv2", "3×3×128×32 = 36,864"),
        ("densenet121", {}, "features.norm0", "2×64 = 128"),
        ("densenet121", {}, "classifier", "(1024 + 1)×1000 = 1,025,000"),
        ("resnet18", {"norm": None}, "layer1.0.conv1", "(3×3×64 + 1)×64 = 36,928"),
        ("resnext50_32x4d", {}, "layer1.0.conv2", "3×3×(128÷32)×128 = 4,608"),
        ("resnet18", {}, "relu", ""),
        ("resnetv2_50x1_bit", {}, "stem.conv", "7×7×3×64 = 9,408"),
        ("resnetv2_50", {}, "head.fc", "(2048 + 1)×1000 = 2,049,000"),
    ],
)
def test_formulas(name: str, fields: dict[str, object], path: str, formula: str) -> None:
    layers = {layer.path: layer for layer in summarize(name, **fields).layers}
    assert layers[path].formula == formula


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_every_formula_gives_the_parameters(name: str) -> None:
    for layer in summarize(name).layers:
        if layer.formula:
            arithmetic, result = layer.formula.split(" = ")
            assert int(result.replace(",", "")) == layer.parameters
            calculated = eval(arithmetic.replace("×", "*").replace("÷", "//"))
            assert calculated == layer.parameters


def test_stages_and_connections_of_densenet121() -> None:
    summary = summarize("densenet121")
    assert [(stage.path, stage.shape) for stage in summary.stages] == [
        ("input", (3, 224, 224)),
        ("features.conv0", (64, 112, 112)),
        ("features.pool0", (64, 56, 56)),
        ("features.denseblock1", (256, 56, 56)),
        ("features.transition1", (128, 28, 28)),
        ("features.denseblock2", (512, 28, 28)),
        ("features.transition2", (256, 14, 14)),
        ("features.denseblock3", (1024, 14, 14)),
        ("features.transition3", (512, 7, 7)),
        ("features.denseblock4", (1024, 7, 7)),
        ("global_pool", (1024,)),
        ("classifier", (1000,)),
    ]
    assert list(summary.totals.connections.values()) == [21, 78, 300, 136]
    kept = summary.totals.kept_bytes
    assert kept["linear-recompute"] < kept["linear"] < kept["plain"] / 4
    kept = summarize("resnet18").totals.kept_bytes
    assert list(kept) == ["plain", "linear"]
    assert kept["linear"] < kept["plain"]
    assert list(summarize("resnet18", norm="group").totals.kept_bytes) == ["plain"]
    assert list(summarize("densenet121", norm="group").totals.kept_bytes) == ["plain"]


def test_folding() -> None:
    summary = summarize("resnet18")
    assert {layer.depth for layer in summary.rows(2)} == {1, 2}
    shown = summary.rows(1)
    assert sum(layer.parameters for layer in shown) == summary.totals.parameters
    with pytest.raises(UserError, match="depth=0: must be at least 1"):
        summary.rows(0)


def test_formats_hold_the_same_values() -> None:
    summary = summarize("densenet_bc40_k12", batch_size=4)
    rows = list(csv.DictReader(io.StringIO(summary.to_csv())))
    assert [row["path"] for row in rows] == [layer.path for layer in summary.layers]
    assert [int(row["macs"]) for row in rows] == [layer.macs for layer in summary.layers]
    document = json.loads(summary.to_json(depth=1))
    assert document["totals"]["parameters"] == 176_122
    assert len(document["layers"]) == len(summary.rows(1))
    markdown = summary.to_markdown(depth=1)
    assert "| classifier | linear |" in markdown
    assert "**parameters**: 176,122" in markdown
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary.to_rich(depth=3))
    text = console.export_text()
    classifier = next(line for line in text.splitlines() if line.startswith("classifier  "))
    assert " ".join(classifier.split()) == "classifier linear 132 10 1,330 (132 + 1)×10 1.32 k 0.00 all"
    assert "for 4 images" in text


@pytest.mark.parametrize("name", ["densenet121", "resnet50", "resnetv2_50", "rdnet_tiny"])
def test_a_narrow_terminal_shows_fewer_columns_and_breaks_no_number(name: str) -> None:
    summary = summarize(name)
    text = as_text([summary.to_rich(depth=2)], width=80)
    assert "(without formula, input" in text
    for row in summary.rows(2):
        if row.parameters:
            assert f"{row.parameters:,}" in text.split()
    assert {"MACs", "output", "parameters"} <= set(text.split())
    assert "…" not in text


def test_sources(tmp_path) -> None:
    model = create_model("resnet20", num_classes=2, in_chans=1)
    classifier = Classifier.from_model(
        model, classes=["a", "b"], preprocessing=Preprocessing(size=(24, 40), channels=1)
    )
    path = tmp_path / "model.safetensors"
    classifier.save(path)
    expected = summarize("resnet20", num_classes=2, in_chans=1, input_size=(24, 40))
    assert summarize(path) == summarize(classifier) == expected
    assert summarize(model, input_size=(24, 40)) == expected
    assert summarize("resnet20", input_size=64).input == (3, 64, 64)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("densnet121", {}, "did you mean densenet121"),
        ("nowhere/model.safetensors", {}, "must be a model file, a run folder or a model's name"),
        ("densenet121", {"input_size": 16}, "input_size=16: must be at least 29 for densenet121"),
        ("densenet121", {"input_size": 0}, "input_size=0: must be at least 29 for densenet121"),
        ("densenet121", {"batch_size": 0}, "batch_size=0: must be at least 1"),
        (
            "densenet121",
            {"grow_rate": 3},
            "grow_rate: must be a field of densenet121; did you mean growth_rate",
        ),
    ],
)
def test_wrong_input(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarize(source, **options)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a network that is imported."""
    classifier = Classifier.from_model(
        TinyNet(3),
        classes=["a", "b", "c"],
        preprocessing=Preprocessing(size=(8, 12), channels=1),
        architecture={"import": TINY, "arguments": {"num_classes": 3}},
    )
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    classifier.save(path)
    return path


def test_an_own_network_is_run(own_file: Path) -> None:
    with trusting(TINY):
        summary = summarize(own_file, batch_size=3)
    counted = torchinfo.summary(TinyNet(3), input_size=(1, 1, 8, 12), verbose=0, depth=3)
    assert summary.totals.parameters == counted.total_params
    shown = {row.layer_id: row for row in counted.summary_list}
    assert [layer.kind for layer in summary.layers] == [
        row.class_name for row in shown.values() if row.depth > 0
    ]
    assert [list(layer.output) for layer in summary.layers] == [
        row.output_size[1:] for row in shown.values() if row.depth > 0
    ]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        TinyNet(3)(torch.empty(1, 1, 8, 12))
    assert 2 * summary.totals.macs == counter.get_total_flops()
    assert summary.totals.weight_bytes == sum(each.nbytes for each in TinyNet(3).state_dict().values())
    assert summary.totals.kept_bytes["plain"] == 3 * sum(row.kept for row in summary.rows(1))
    assert [(stage.path, stage.shape) for stage in summary.stages] == [
        ("input", (1, 8, 12)),
        ("body", (8, 4, 6)),
        ("head", (3,)),
    ]
    assert summarize(TinyNet(3), input_size=(8, 12), batch_size=3) == summary
    text = str(summary)
    assert text.startswith("TinyNet, images of 1×8×12")
    assert "receptive field" not in text
    assert "receptive field" not in summary.to_markdown()
    assert json.loads(summary.to_json())["was_run"] is True


def test_a_model_that_was_modified_is_not_summarized_as_what_it_was() -> None:
    model = se_densenet(3, 1)
    summary = summarize(model, input_size=16)
    assert summary.name == "densenet_bc40_k12, modified"
    assert summary.totals.parameters == sum(parameter.numel() for parameter in model.parameters())
    of_classifier = summarize(
        Classifier.from_model(
            model, classes=["a", "b", "c"], preprocessing=Preprocessing(size=16, channels=1)
        )
    )
    assert of_classifier == summary


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, f'its network is {TINY}, .* trust="{TINY}"'),
        (TinyNet(3), {}, "input_size: must be given for TinyNet, a module"),
        (TinyNet(3), {"input_size": 8, "in_chans": 3}, r"TinyNet fails on images of shape \(1, 3, 8, 8\)"),
        (torch.nn.Flatten(), {"input_size": 8}, "in_chans: must be given for Flatten, which has no convolu"),
        (TinyNet(3), {"input_size": 8, "width": 8}, "width: can be changed only for a model's name"),
    ],
)
def test_wrong_input_of_own_networks(
    source: object, options: dict[str, int], message: str, own_file: Path
) -> None:
    with pytest.raises(UserError, match=message):
        summarize(own_file if source is None else source, **options)  # type: ignore[arg-type]
