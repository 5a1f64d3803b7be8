"""`skipnets convert`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.helpers.commands import Result, write_image

import skipnets
from skipnets.models.weights.torchxrayvision import LABELS, PUBLISHED

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(skipnets.create_model("resnet8_w16", num_classes=2).state_dict(), path)
    return path


GIVEN = ["--model", "resnet8_w16", "--size", 32, "--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25]


def test_a_model_file_for_every_other_command(weights: Path, tmp_path: Path, run: Run) -> None:
    # As Notepad saves it, and with a name and a blank as macOS and spreadsheets write them.
    (tmp_path / "names.txt").write_text("dark\r\n\r\n\u200b\r\nlight spo\u0302t \r\n", "utf-8-sig")
    out = tmp_path / "m.safetensors"
    result = run("convert", weights, *GIVEN, "--classes", tmp_path / "names.txt", "--output", out)
    assert result.status == 0
    assert "dark, light spôt" in result.out
    assert str(out) in result.out
    write_image(tmp_path / "a.png", 100, 1)
    assert run("predict", out, tmp_path / "a.png").status == 0
    other = tmp_path / "n.safetensors"
    given = [*GIVEN, "--classes", "dark", "light spôt"]
    printed = json.loads(run("convert", weights, *given, "--output", other, "--json").out)
    assert printed["written"] == [str(other)]
    assert printed["classes"] == ["dark", "light spôt"]
    assert skipnets.load(other).classes == skipnets.load(out).classes


def test_published_labels_need_no_option(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchxrayvision's, where it keeps its files."""
    published = PUBLISHED["densenet121-res224-rsna"]
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".torchxrayvision" / "models_data"
    folder.mkdir(parents=True)
    tensors = skipnets.create_model("densenet121", num_classes=18, in_chans=1).state_dict()
    torch.save(tensors, folder / published.file)
    out = tmp_path / "chest.safetensors"
    assert run("convert", "xrv:densenet121-res224-rsna", "--output", out).status == 0
    classifier = skipnets.load(out)
    assert classifier.classes == ("Pneumonia", "Lung Opacity")
    assert classifier.thresholds == tuple(
        published.thresholds[LABELS.index(name)] for name in classifier.classes
    )


def test_bad_input_is_one_line(weights: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xff")
    existing = tmp_path / "mine.safetensors"
    existing.write_text("hours of training")
    for words, message in (
        (["--output", "m.onnx"], "--output=m.onnx: must end in .safetensors"),
        (["--output", "m.safetensors"], "--model must be given, "),
        (
            ["--classes", tmp_path / "names.txt", "--output", "m.safetensors"],
            "must be a text file with a name",
        ),
        (["--classes", "a", "b", "c", *GIVEN, "--output", "m.safetensors"], "must have a head for 3 classes"),
        ([*GIVEN, "--output", existing], f"--output={existing}: already exists; remove it or name another"),
        ([*GIVEN, "--output", existing / "m.safetensors"], "cannot be written"),
    ):
        result = run("convert", weights, *words)
        assert result.status == 2
        assert message in result.err
        assert result.out == ""
    assert existing.read_text() == "hours of training"
