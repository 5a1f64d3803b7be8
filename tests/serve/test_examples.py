"""Examples are small, different from one another, and carry nothing but pixels."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from skipnets.errors import UserError
from skipnets.serve import find_examples


def test_images_of_a_folder_are_spread_over_it_and_made_small(tmp_path: Path) -> None:
    for label in ("ant", "bee", "cat"):
        (tmp_path / label).mkdir()
        for index in range(10):
            Image.new("RGB", (40, 30), (10 * index, 0, 0)).save(tmp_path / label / f"{label}{index}.png")
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (3000, 1500)).save(tmp_path / "cat" / "large.jpg", exif=exif)
    (tmp_path / "cat" / "zebra.png").write_bytes(b"no image")
    found = find_examples(tmp_path, count=32)
    assert len(found) == 31
    [large] = [example for example in found if example.name == "large"]
    assert large.media_type == "image/jpeg"
    assert Image.open(io.BytesIO(large.content)).size == (320, 640)
    assert b"taken at home" not in large.content
    few = find_examples(tmp_path, count=3)
    assert [example.name[:3] for example in few] == ["ant", "bee", "cat"]
    assert few[0].media_type == "image/png"
    assert Image.open(io.BytesIO(few[0].content)).getpixel((0, 0)) == (50, 0, 0)


def test_a_named_set_shows_its_classes() -> None:
    found = find_examples("digits", count=10)
    assert [example.name for example in found] == [str(digit) for digit in range(10)]
    assert all(Image.open(io.BytesIO(example.content)).size == (8, 8) for example in found)


def test_where_there_are_none_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images that can be read"):
        find_examples(tmp_path)
    with pytest.raises(UserError, match=r"^examples: nowhere: no such folder"):
        find_examples("nowhere")
