"""`summary`, `diagram`, `explain` and `reuse` from the command line, on a DenseNet's run and a ResNet's."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.commands import QUICK, Result, write_image

from skipnets.cli import main

FAMILIES = ("densenet", "resnet")
RESNET = ["--model", "resnet20", "--model-options.block-config", "[1,1]", "--model-options.width", 8]


@pytest.fixture(scope="module")
def runs(trained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each family. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "residual"
    options = [*RESNET, *QUICK[QUICK.index("--epochs") :]]
    assert main([str(word) for word in ["train", photos, "--out", out, *options]]) == 0
    return {"densenet": trained, "resnet": out}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json"])
def test_a_summary_is_printed_or_written(
    family: str, form: str, runs: dict[str, Path], tmp_path: Path, run
) -> None:
    words = ("summary", runs[family], "--depth", 2, "--format", form)
    printed = run(*words)
    assert printed.status == 0
    assert "3×3" in printed.out or '"kernel"' in printed.out
    assert run(*words, "--output", tmp_path / "new" / "s.txt").out == ""
    written = (tmp_path / "new" / "s.txt").read_text(encoding="utf-8")
    assert [line.rstrip() for line in written.splitlines()] == [
        line.rstrip() for line in printed.out.splitlines()
    ]


def test_a_summary_follows_its_options(run) -> None:
    options = ("--model-options.growth-rate", 24, "--input-size", 64, "--format", "json")
    found = json.loads(run("summary", "densenet121", *options).out)
    assert found["input"] == [3, 64, 64]
    assert found["stages"][1]["shape"] == [48, 32, 32]
    result = run("summary", "resnet18", "--batch-size", "fit", "--memory", "16GiB")
    images = int(result.err.rsplit(" ", 1)[1])
    assert images > 100
    assert f"for {images} images" in result.out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_diagram_is_drawn(family: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    output = tmp_path / "new" / "d.svg"
    assert run("diagram", runs[family], "--output", output).status == 0
    assert ET.parse(output).getroot().tag.endswith("svg")
    assert run("diagram", *runs.values(), "--output", tmp_path / "both.png").status == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["gradcam", "integrated-gradients", "occlusion"])
def test_images_are_explained(
    family: str, method: str, runs: dict[str, Path], photos: Path, tmp_path: Path, run
) -> None:
    words = (photos / "dark/00.png", photos / "bright side/0[12].png", "--method", method)
    classes = ("--classes", "dark", "--classes", "bright side")
    assert run("explain", runs[family], *words, *classes, "--output", tmp_path / "seen.png").status == 0
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.width > 3 * 256
    maps = [np.load(path) for path in sorted((tmp_path / "seen").glob("*.npy"))]
    assert [found.shape for found in maps] == [(16, 16)] * 6
    assert all(np.ptp(found) > 0 for found in maps)
    assert len(list((tmp_path / "seen").glob("*.png"))) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_is_drawn_with_its_numbers(family: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    assert run("reuse", runs[family], "--output", tmp_path / "r.png").status == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = "share" if family == "resnet" else "relative"
    assert len(rows) == (2 if family == "resnet" else 2 * 3)
    assert all(0 <= float(row[column]) <= 1 for row in rows)


CASES = {
    "no such model": (["summary", "densnet121"], ["densnet121", "did you mean densenet121"]),
    "too small images": (["summary", "densenet121", "--input-size", 8], ["8×8", "29×29"]),
    "fit without memory": (["summary", "resnet18", "--batch-size", "fit"], ["--memory", "16GiB"]),
    "memory that is none": (
        ["summary", "resnet18", "--batch-size", "fit", "--memory", "much"],
        ["much", "16GiB"],
    ),
    "a batch that is none": (["summary", "resnet18", "--batch-size", "big"], ["big", "whole number or fit"]),
    "a summary where nothing can be": (
        ["summary", "resnet18", "--output", "file/s.txt"],
        ["cannot be written"],
    ),
    "a drawing of another kind": (
        ["diagram", "resnet18", "--output", "a.gif"],
        ["a.gif", ".svg, .png, .pdf"],
    ),
    "a drawing where nothing can be": (
        ["diagram", "resnet18", "--block", 1, "--output", "file/d.svg"],
        ["file/d.svg", "cannot be written"],
    ),
    "no such block": (["diagram", "resnet18", "--block", 5, "--output", "a.svg"], ["from 1 to 4", "5"]),
    "a sheet of another kind": (["explain", "run", "photo.png", "--output", "a.jpg"], ["a.jpg", ".png"]),
    "what is no image": (["explain", "run", "file", "--output", "a.png"], ["file", "not an image"]),
    "a missing image": (["explain", "run", "none.png", "--output", "a.png"], ["none.png", "is not there"]),
    "no such class": (
        ["explain", "run", "photo.png", "--classes", "drak", "--output", "a.png"],
        ["drak", "did you mean dark"],
    ),
    "no such stage": (
        ["explain", "run", "photo.png", "--stage", "layer9", "--output", "a.png"],
        ["layer9", "denseblock1"],
    ),
    "a folder without images for a ResNet": (
        ["reuse", "residual", "empty", "--output", "r.png"],
        ["empty"],
    ),
    "reuse of no images": (["reuse", "residual", "--images", 0, "--output", "r.png"], ["images", "0"]),
    "reuse of a name": (["reuse", "resnet18", "--output", "r.png"], ["resnet18", "does not exist"]),
    "reuse as a table": (["reuse", "run", "--output", "r.csv"], ["r.csv", ".png, .svg, .pdf"]),
    "an explanation by an export": (
        ["explain", "net.onnx", "photo.png", "--output", "a.png"],
        ["net.onnx", "model file or run folder that it was made from"],
    ),
    "reuse in an export": (["reuse", "net.onnx", "--output", "r.png"], ["net.onnx", "that it was made from"]),
    "calibration of an export": (["calibrate", "net.onnx"], ["net.onnx", "that it was made from"]),
    "a report of no run": (["report", "empty"], ["empty", "not a run folder"]),
    "a report of a name": (["report", "densenet121"], ["densenet121", "not a run folder"]),
    "a report that cannot be written": (["report", "run", "--output", "file/r.html"], ["cannot be written"]),
    "a comparison with no run": (["compare", "run", "empty"], ["empty", "evaluation.json"]),
    "calibration of a folder": (["calibrate", "empty"], ["empty", "model.safetensors"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(
    case: str, runs: dict[str, Path], tmp_path: Path, run: Callable[..., Result], monkeypatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("neither an image nor a folder")
    (tmp_path / "run").symlink_to(runs["densenet"])
    (tmp_path / "residual").symlink_to(runs["resnet"])
    (tmp_path / "net.onnx").write_text("never looked at")
    write_image(tmp_path / "photo.png", 10)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words, expected = CASES[case]
    result = run(*words)
    assert (result.status, result.out) == (2, "")
    [line] = result.err.splitlines()
    assert all(part in line for part in expected), line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("report", "jinja2", "report"),
        ("report", "captum", "report"),
        ("report", "torch", "report"),
        ("compare", "scipy", "report"),
        ("explain", "captum", "explain"),
        ("explain", "torch", "explain"),
        ("reuse", "torch", "train"),
        ("diagram", "torch", "train"),
        ("summary", "torch", "train"),
        ("calibrate", "torch", "train"),
    ],
)
def test_a_missing_extra_is_named(command: str, library: str, extra: str, runs: dict[str, Path]) -> None:
    words = {
        "compare": [runs["resnet"], runs["resnet"]],
        "explain": [runs["resnet"], "a.png", "--output", "a.png"],
        "reuse": [runs["resnet"], "--output", "a.png"],
        "diagram": ["resnet18", "--output", "a.svg"],
    }.get(command, [runs["resnet"]])
    script = (
        "import sys; sys.modules[sys.argv[1]] = None; "
        "from skipnets.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, library, command, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f'skipnets: this needs the extra "{extra}": pip install "skipnets[{extra}]"\n'
