"""Names that mean harm go through every command: no escape sequence, no forged line, no lost result."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.commands import Result

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.models.factory import create_model

CLASSES = ("[red]\x1b[2J", "=1+1", "new\nline", "[")
# In a folder named "[", so that the path holds what Rich takes for the end of a markup.
FILE = b"x]\x1b]0;owned\x07\n\xff=.png"


def hostile(text: str) -> bool:
    """Whether a text has what a terminal obeys, but line ends and tabs."""
    return not all(line.replace("\t", "").isprintable() for line in text.split("\n"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with such classes, and images with such names in folders with such names."""
    root = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(0)
    for label in CLASSES:
        (root / "data" / label).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / label / f"{number}.png")
    data = (root / "data/[/0.png").read_bytes()
    Path(os.fsdecode(os.fsencode(root / "data/[") + b"/" + FILE)).write_bytes(data)
    (root / "data/[/=broken.png").write_bytes(b"no image")
    model = create_model("resnet20", num_classes=4, block_config=(1, 1), width=4)
    Classifier.from_model(
        model,
        classes=sorted(CLASSES),
        preprocessing=Preprocessing(size=16),
        provenance={"data": "\x1b[2J[/x]", "note": "\x1b[2J\n[/x]"},
    ).save(root / "m.safetensors")
    return root


COMMANDS: dict[str, list[str]] = {
    "info": ["info", "m.safetensors"],
    "info as JSON": ["info", "m.safetensors", "--json"],
    "data": ["data", "data"],
    "data as JSON": ["data", "data", "--json"],
    "predict": ["predict", "m.safetensors", "data", "--top-k", "2"],
    "predict as JSON": ["predict", "m.safetensors", "data", "--json"],
    "evaluate": ["evaluate", "m.safetensors", "data", "--split", "all"],
    "evaluate as JSON": ["evaluate", "m.safetensors", "data", "--split", "all", "--json"],
    "explain": ["explain", "m.safetensors", "data/[", "--output", "e.png"],
    "summary": ["summary", "m.safetensors"],
    "plan": ["plan", "m.safetensors"],
    "a model that is not there": ["info", "\x1b[2J[/x]\n.safetensors"],
    "an option that is not there": ["info", "--\x1b[2J[/x]"],
    "a command that is not there": ["\x1b[2J[/x]"],
}


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("terminal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_is_obeyed(
    case: str, terminal: bool, place: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "plan":
        pytest.importorskip("skipnets_engine")
    monkeypatch.chdir(place)
    if terminal:  # Rich lays out for one, without colors, which would be escape sequences of its own
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
    result = run(*COMMANDS[case])
    assert result.status in (0, 1, 2)
    assert not hostile(result.out), result.out
    assert not hostile(result.err), result.err
    if case.endswith("as JSON"):
        json.loads(result.out)


def test_every_line_of_the_table_is_an_image(place: Path, run: Callable[..., Result]) -> None:
    result = run("predict", place / "m.safetensors", place / "data")
    assert result.status == 1
    images = list((place / "data").rglob("*.png"))
    assert len(result.out.splitlines()) == len(images)
    assert all(line.count("\t") in (1, 2) for line in result.out.splitlines())


def test_tables_in_files_hold_no_formula(place: Path, run: Callable[..., Result], tmp_path: Path) -> None:
    words = [place / "m.safetensors", place / "data"]
    assert run("predict", *words, "--output", tmp_path / "p.csv", "--top-k", 4).status == 1
    with (tmp_path / "p.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@", "\t"))]
    assert {"'=1+1", "[red]\x1b[2J"} <= {cell for row in rows for cell in row}


@pytest.mark.slow
def test_a_run_on_such_data_can_be_evaluated(
    place: Path, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", "resnet20", "--model-options.block-config", "[1,1]", "--model-options.width", "4"]
    options += ["--epochs", "1", "--workers", "0", "--batch-size", "4", "--accelerator", "cpu"]
    result = run("train", place / "data", "--out", "run [x]", *options)
    assert result.status == 1, result.err  # an image is broken
    assert not hostile(result.out + result.err)
    result = run("evaluate", "run [x]", "--json")
    assert {each["name"] for each in json.loads(result.out)["classes"]} == set(CLASSES)
    assert not hostile(result.out + result.err)


SCRIPT = "import sys; from skipnets.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_a_strict_stream_of_another_encoding_gets_everything(place: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, "predict", "m.safetensors", "data", "--json"],
        cwd=place,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert len(json.loads(result.stdout)["predictions"]) == len(list((place / "data").rglob("*.png")))


@pytest.fixture
def odd_files(place: Path, tmp_path: Path) -> Iterator[Path]:
    """An image among what is none: a pipe, a socket, a device and links."""
    (tmp_path / "a.png").write_bytes((place / "data/[/0.png").read_bytes())
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(tmp_path)  # the names of sockets must be short
        server.bind("socket.png")
        os.chdir(before)
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        (tmp_path / "link.png").symlink_to("a.png")
        yield tmp_path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
@pytest.mark.timeout(60)
def test_pipes_sockets_and_devices_are_not_read(
    odd_files: Path, place: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(odd_files)
    result = run("predict", place / "m.safetensors", "a.png", "pipe.png", "socket.png", "zero.png")
    assert result.status == 1
    assert [line.split("\t")[1] == "failed" for line in result.out.splitlines()] == [False, True, True, True]
    assert result.err.count("a pipe, a socket or a device, not a file") == 3
    found = run("predict", place / "m.safetensors", ".")
    assert [line.split("\t")[0] for line in found.out.splitlines()] == ["a.png", "link.png"]
    for name in ("m.safetensors", "m.onnx", "m.pt2"):
        os.mkfifo(name)
        result = run("info", name)
        assert (result.status, result.out) == (2, "")
        assert f"{name}: a pipe, a socket or a device" in result.err


def test_an_image_that_is_missing_does_not_stop_the_others(
    place: Path, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "data/[")
    for words in (
        ["predict", place / "m.safetensors", "missing.png", "0.png"],
        ["explain", place / "m.safetensors", "missing.png", "0.png", "--output", tmp_path / "e.png"],
    ):
        result = run(*words)
        assert result.status == 1
        assert "missing.png: no such file" in result.err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">/dev/full", 2, "standard output: cannot be written (No space left on device)"),
        ("2>/dev/full", 1, None),
        ("2>&-", 1, None),
        (">&-", 2, "standard output: is closed"),
        ("| true", 1, ""),
        ("| cat", 1, "failed"),
        ("| head -n 1", 1, None),  # how much there is to say depends on when it exits
    ],
)
def test_output_that_cannot_be_written(redirection: str, status: int, said: str | None, place: Path) -> None:
    command = f'{sys.executable} -c "{SCRIPT}" predict m.safetensors data {redirection}'
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=place, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert said is None or said in result.stderr
