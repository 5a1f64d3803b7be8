"""`skipnets data` shows what there is, says what may mislead, and never trains."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import Result
from tests.data.test_copies import scene

Run = Callable[..., Result]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Two classes in Training and Testing with one image in both, a text file and a folder of macOS."""
    root = tmp_path / "set"
    for name, seeds in (("Training/cat", (0, 1, 2)), ("Training/dog", (3, 4)), ("Testing/cat", (0,))):
        (root / name).mkdir(parents=True)
        for seed in seeds:
            scene(seed).save(root / name / f"{seed}.png")
    (root / "Training" / "notes.txt").write_text("")
    (root / "__MACOSX").mkdir()
    return root


def test_the_table(leaky: Path, run: Run) -> None:
    result = run("data", leaky)
    assert result.status == 0
    assert result.err == ""
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    for line in (
        f"data {leaky}",
        "layout split folders with class folders (train/CLASS/…)",
        "images 6 (train 3, val 2, test 1)",
        "size 72×96 pixels (height × width)",
        "channels color",
        "bits 8",
        "format PNG",
        "note Training is the train split",
        "note Testing is the test split",
        "index class train val test all",
        "0 cat 2 1 1 4",
        "1 dog 1 1 0 2",
        'warning classes that are in train but not in test: "dog"',
        "warning 1 copy of images (1 equal byte by byte, 0 nearly equal)",
    ):
        assert line in lines, result.out
    assert any(
        line.startswith("warning 1 image of train and test are copies of one another") for line in lines
    )
    assert "passed over 1 .txt, folder __MACOSX" in lines
    assert not list(leaky.rglob("*.safetensors"))


def test_json(leaky: Path, run: Run) -> None:
    found = json.loads(run("data", leaky, "--json").out)
    assert found["images"] == 6
    assert found["splits"] == {"train": 3, "val": 2, "test": 1}
    assert found["classes"][1] == {"index": 1, "name": "dog", "train": 1, "val": 1, "test": 0}
    assert found["passed_over"] == {"folder __MACOSX": 1, ".txt": 1}
    assert found["formats"] == {"PNG": 6}
    assert found["width"] == [96, 96]


def test_copies_are_written(leaky: Path, run: Run, tmp_path: Path) -> None:
    result = run("data", leaky, "--copies", tmp_path / "copies.csv")
    assert result.out.splitlines()[-1] == str(tmp_path / "copies.csv")
    with (tmp_path / "copies.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["copy"], row["exact"]) for row in rows] == [
        ("Testing/cat/0.png", "Training/cat/0.png", "True")
    ]


def test_what_is_read_is_never_replaced(leaky: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(leaky.parent)
    manifest = Path("list.csv")
    manifest.write_text("path,label\n" + "".join(f"{leaky}/Training/cat/{n}.png,cat\n" for n in range(2)))
    before = manifest.read_text()
    for words in (
        ("data", manifest, "--copies", manifest.absolute()),
        ("audit", "./list.csv", "--write", manifest),
        ("evaluate", leaky, manifest, "--predictions", manifest),
        ("predict", leaky, manifest, "--output", manifest),
    ):
        result = run(*words)
        assert result.status == 2
        assert "list.csv: is what this command reads; write to another file" in result.err
        assert manifest.read_text() == before


def test_unreadable_images_are_status_1(leaky: Path, run: Run) -> None:
    (leaky / "Training" / "dog" / "9.png").write_bytes(b"nothing")
    result = run("data", leaky)
    assert result.status == 1
    assert "Training/dog/9.png (not an image in a known format" in result.out


def test_missing_files_are_all_listed(tmp_path: Path, run: Run) -> None:
    names = [f"{number}.png" for number in range(50)]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},cat\n" for name in names))
    result = run("data", tmp_path / "list.csv")
    assert result.status == 2
    assert result.out.splitlines() == [f"missing: {name}" for name in names]
    assert len(result.err.splitlines()) == 1
    listed = json.loads(run("data", tmp_path / "list.csv", "--json").out)
    assert listed["missing"] == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layout", "split"), "layout"),
        (("--page", "3"), "--page=3: none of the 6 images has such a page"),
        (("--channels", "3"), "--channels: no such option of data; skipnets train has it"),
        (("--voi",), "--voi: no such option of data; skipnets train has it"),
        (("--colour", "3"), "--colour: no such option"),
        (("--page", "0"), "page=0: must be a number from 1, or all"),
        (("--group-pattern", "("), "--group-pattern=(: not a regular expression"),
        (
            ("--group-pattern", "x(.)"),
            "--group-pattern=x(.): finds no group in 6 of 6 paths: Testing/cat/0.png",
        ),
    ],
)
def test_wrong_options_are_one_line(leaky: Path, run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("data", leaky, *words)
    assert result.status == 2
    assert message in result.err
    assert result.out == ""


def test_many_classes_are_shown_in_part(tmp_path: Path, run: Run) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}").mkdir()
        for copy in range(3):
            Image.new("L", (4, 4 + copy), number).save(tmp_path / f"{number:02}" / f"{copy}.png")
    lines = [" ".join(line.split()) for line in run("data", tmp_path).out.splitlines()]
    assert "11 11 1 1 1 3" in lines
    assert "… (24 more)" in lines
    assert "36 36 1 1 1 3" in lines
    assert not any(line.startswith("12 12") for line in lines)


def test_more_pixels_are_read_where_they_are_allowed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # raised for the process
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("1", (8, 8)).save(tmp_path / name / f"{number}.png")
    Image.new("1", (9500, 9500)).save(tmp_path / "a" / "0.png")
    refused = run("data", tmp_path, "--duplicates", "ignore")
    assert refused.status == 1
    assert "larger than 89,478,485 pixels, the most that is read; --max-pixels allows more" in " ".join(
        refused.out.split()
    )
    allowed = run("data", tmp_path, "--duplicates", "ignore", "--max-pixels", 9500 * 9500)
    assert (allowed.status, allowed.err) == (0, "")
    assert "9500×9500 pixels" in allowed.out
    assert "larger than" not in allowed.out
    # No more than that.
    short = run("data", tmp_path, "--duplicates", "ignore", "--max-pixels", 9500 * 9500 - 1)
    assert short.status == 1
    assert "larger than 90,249,999 pixels" in short.out


def test_names_cannot_write_to_the_terminal(tmp_path: Path, run: Run) -> None:
    for name in ("a[red]b", "c\x1b[31md"):
        (tmp_path / name).mkdir()
        for copy in range(3):
            Image.new("L", (4 + copy, ord(name[0]) - 90)).save(tmp_path / name / f"{copy}.png")
    out = run("data", tmp_path).out
    assert "a[red]b" in out
    assert "\x1b" not in out
