"""What contact sheets are made of."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw

from skipnets.insight.cells import CELL, find_font, fitted, short_names, truncated


def test_equal_names_in_different_folders_are_distinguished() -> None:
    names = short_names(["a/cat/1.jpg", "a/dog/1.jpg", "b/dog/1.jpg", "a/cat/2.jpg", "[3]"])
    assert list(names.values()) == ["cat/1.jpg", "a/dog/1.jpg", "b/dog/1.jpg", "2.jpg", "[3]"]
    names = short_names(["a/cat/1.jpg", "b/cat/1.jpg", "a/dog/2.jpg", "3.jpg", "[4]"], folders=1)
    assert list(names.values()) == ["a/cat/1.jpg", "b/cat/1.jpg", "dog/2.jpg", "3.jpg", "[4]"]


def test_an_image_fits_its_place_and_small_ones_keep_sharp_pixels() -> None:
    assert fitted(Image.new("RGB", (1000, 500))).size == (CELL, CELL // 2)
    small = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    assert (np.asarray(fitted(Image.fromarray(small))) == small.repeat(8, 0).repeat(8, 1)).all()


def test_text_is_cut_to_the_width_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    assert truncated(draw, "short", 14) == "short"
    for _ in range(2):
        cut = truncated(draw, "a long name " * 20, 14)
        assert cut.endswith("…")
        assert CELL - 20 < draw.textlength(cut, font=find_font(14)) <= CELL
        # Again with Pillow's own font, as where there is no matplotlib.
        find_font.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    find_font.cache_clear()
