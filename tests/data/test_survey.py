"""What a dataset holds, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from skipnets.data.sources import find_dataset, open_dataset
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


def test_values_of_more_than_8_bits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 4096, (12, 20, 20)).astype(np.uint16)
    images[::2] //= 256  # one class with 4 bits, the other with 12
    for index, image in enumerate(images):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    found = survey(open_dataset(tmp_path), "scans")
    assert found.values is not None
    assert (found.values.lowest, found.values.highest) == (images.min(), images.max())
    np.testing.assert_allclose(found.values.window[0], np.percentile(images, (0.5, 99.5)), atol=0.1)
    assert f"0 to {images.max()}; 0.5 and 99.5 percentiles 0 to " in str(found)
    assert found.to_dict()["values"]["highest"] == images.max()
    assert any('the values of "a" stay below 256' in warning for warning in found.warnings)


def test_mixed_depths_are_a_warning(tmp_path: Path) -> None:
    for index, dtype in enumerate((np.uint8, np.uint16)):
        folder = tmp_path / "ab"[index]
        folder.mkdir()
        for number in range(3):
            Image.fromarray(np.full((8, 8), 99, dtype)).save(folder / f"{number}.png")
    found = survey(open_dataset(tmp_path), "scans")
    assert any(warning.startswith("images of 8 and 16 bits are mixed") for warning in found.warnings)


@pytest.mark.parametrize(("bands", "said"), [(13, False), (20, True)])
def test_arrays_that_may_be_volumes_are_said_to_be_read_as_images(
    tmp_path: Path, bands: int, said: bool
) -> None:
    generator = np.random.default_rng(0)
    for index in range(6):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{index}.npy", generator.normal(size=(24, 28, bands)))
    notes = survey(open_dataset(tmp_path), "scans").notes
    hint = f"arrays are read as images of up to {bands} channels; --dims 3 takes them as volumes"
    assert (hint in notes) == said
