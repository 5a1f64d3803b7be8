"""Thumbnails are what Pillow makes of an image, however they are decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers import flawed

from skipnets.data.sources import find_dataset
from skipnets.data.thumbnails import gray_thumbnails

FILES = {
    "color.jpg": ((40, 30), "RGB", {}),
    "full-color.jpg": ((40, 30), "RGB", {"subsampling": 0}),
    "progressive.jpg": ((50, 64), "RGB", {"progressive": True}),
    "gray.jpeg": ((32, 32), "L", {}),
    "cmyk.jpg": ((40, 40), "CMYK", {}),
    "large.jpg": ((300, 290), "RGB", {}),
    "wide.jpg": ((400, 40), "RGB", {}),
    "turned.jpg": ((40, 30), "RGB", {"exif": True}),
    "turned-by-xmp.jpg": (
        (40, 30),
        "RGB",
        {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'},
    ),
    "image.png": ((40, 30), "RGB", {}),
    "png.jpg": ((40, 30), "RGB", {"format": "PNG"}),
    "small.jpg": ((15, 40), "RGB", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "a"
    root.mkdir()
    for seed, (name, (size, mode, options)) in enumerate(FILES.items()):
        image = flawed.scene(seed, size=size, sides=(4, 9), weights=(4, 2)).convert(mode)
        if options.get("exif"):
            exif = Image.Exif()
            exif[0x0112] = 6
            options = {"exif": exif}
        image.save(root / name, **options)
    (root / "broken.jpg").write_bytes((root / "color.jpg").read_bytes()[:300])
    (root / "no-image.jpg").write_bytes(b"no image")
    return root.parent


def test_they_are_pillows(folder: Path) -> None:
    dataset = find_dataset(folder, fractions=None)
    found = gray_thumbnails(dataset, np.arange(len(dataset)), 32, at_least=16)
    for name, thumbnail in zip(dataset.names, found, strict=True):
        if name.split("/")[1] in ("small.jpg", "broken.jpg", "no-image.jpg"):
            assert not thumbnail.any(), name
            continue
        image = dataset.open_reduced(dataset.names.index(name), 32, channels=1)
        assert (thumbnail == np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))).all(), name
        assert thumbnail.any(), name


def test_progress_goes_up_to_the_end(folder: Path) -> None:
    told: list[float] = []
    gray_thumbnails(
        find_dataset(folder, fractions=None), np.arange(10), 32, at_least=16, progress=told.append
    )
    assert told[-1] == 1
