"""What a dataset holds, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two splits, of two sizes, with a file that is no image and one that is cut short."""
    counts = {("train", "cat"): 5, ("train", "dog"): 3, ("test", "cat"): 2, ("test", "dog"): 1}
    for (split, label), count in counts.items():
        (tmp_path / split / label).mkdir(parents=True)
        for index in range(count):
            size = (30, 20) if label == "dog" else (12, 40)
            Image.new("L", size, index).save(tmp_path / split / label / f"{index}.png")
    (tmp_path / "train/cat/notes.txt").write_text("")
    (tmp_path / "train/dog/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def test_everything_is_counted(folder: Path) -> None:
    found = survey(find_dataset(folder, fractions=None), "pets")
    about = found.to_dict()
    json.dumps(about)
    assert found.total == about["images"] == 12
    assert about["splits"] == {"train": 9, "test": 3}
    assert about["classes"] == [
        {"index": 0, "name": "cat", "train": 5, "test": 2},
        {"index": 1, "name": "dog", "train": 4, "test": 1},
    ]
    assert about["width"] == [12, 30]
    assert about["height"] == [20, 40]
    assert list(found.unreadable) == ["train/dog/broken.png"]
    assert sum(found.passed_over.values()) == 1


def test_it_prints_itself(folder: Path) -> None:
    console = Console(width=120, record=True, quiet=True)
    found = survey(find_dataset(folder, fractions=None), "pets")
    with console.capture() as captured:
        console.quiet = False
        console.print(found)
    for expected in ("pets", "cat", "dog", "broken.png", ".txt"):
        assert expected in captured.get()
    assert "broken.png" in str(found)
