"""The table: formulas, folding, formats."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console
from tests.helpers.networks import EVERY_NETWORK

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.insight import summarize
from skipnets.models import create_model
from skipnets.tables import as_text


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
