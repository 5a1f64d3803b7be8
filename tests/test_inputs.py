"""Whatever a caller gives for images becomes named sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.classifiers import some_image

from skipnets.errors import UserError
from skipnets.inputs import expand, is_tensor, named_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "below/c.png", "c[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(some_image()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_and_a_pattern_stand_for_their_images(folder: Path) -> None:
    every = [str(folder / name) for name in ("a.png", "b.png", "below/c.png", "c[1].png")]
    assert sorted(expand(folder)) == every
    assert expand(f"{folder}/?.png") == every[:2]
    assert expand(f"{folder}/bel*") == every[2:3]
    # A file is itself, even where its name reads as a pattern; so is what is not there, to fail later.
    assert expand(folder / "c[1].png") == every[3:]
    assert expand(folder / "no.png") == [str(folder / "no.png")]


def test_a_folder_without_images_and_a_pattern_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"images: {tmp_path} holds no images"):
        expand(tmp_path)
    (tmp_path / "x.json").touch()
    with pytest.raises(UserError, match=r"holds no images$"):
        expand(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.TAR").touch()
    with pytest.raises(
        UserError, match=r"holds no images, but tar or .* predict --output FOLDER/ reads these$"
    ):
        expand(tmp_path)
    with pytest.raises(UserError, match=r"images: no file matches .*\*\.png"):
        expand(f"{tmp_path}/*.png")


def test_inputs_that_are_no_path_are_numbered(folder: Path) -> None:
    image = Image.fromarray(some_image())
    mixture = [folder / "a.png", image, some_image(), str(folder / "below")]
    names = [str(name) for name, _ in named_sources(mixture)]
    assert names == [str(folder / "a.png"), "[1]", "[2]", str(folder / "below" / "c.png")]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (np.zeros((4, 5), np.uint8), 1),
        (np.zeros((4, 5, 3), np.uint8), 1),
        (np.zeros((4, 5, 7), np.uint8), 4),
        (np.zeros((2, 4, 5, 3), np.uint8), 2),
        (torch.zeros(4, 5), 1),
        (torch.zeros(3, 4, 5), 1),
        (torch.zeros(7, 4, 5), 7),
        (torch.zeros(2, 3, 4, 5), 2),
        (Image.new("L", (3, 3)), 1),
    ],
)
def test_one_image_is_told_from_several(given: object, count: int) -> None:
    assert len(list(named_sources(given))) == count


def test_tensors_become_arrays() -> None:
    levels = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    [(_, array)] = named_sources(levels)
    np.testing.assert_array_equal(array, np.arange(256, dtype=np.uint8).reshape(16, 16, 1))
    pixels = torch.from_numpy(some_image()).permute(2, 0, 1)
    [(_, array)] = named_sources(pixels)
    np.testing.assert_array_equal(array, some_image())
    # Normalized already: left as it is, for the reader to refuse.
    [(_, array)] = named_sources(-levels)
    assert array.dtype == np.float32
    assert is_tensor(levels)
    assert not is_tensor(array)
