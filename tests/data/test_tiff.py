"""Every kind of TIFF is decoded to the array that tifffile wrote, from a path as from bytes."""

from __future__ import annotations

import itertools
import re
import sys
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from skipnets.data.decoding import open_image, read_header
from skipnets.errors import UserError, install_command

HEIGHT, WIDTH = 24, 40


class Kind(NamedTuple):
    """What a TIFF file can be.

    Attributes:
        bits: Of each channel.
        photometric: What its values mean.
        planar: Whether the channels of a pixel lie together.
        compression: Of its strips or tiles.
        tile: Their size; None for strips.
        orientation: Which corner of the image the first pixel is, as in EXIF.
    """

    bits: int
    photometric: str
    planar: str
    compression: str | None
    tile: tuple[int, int] | None
    orientation: int


KINDS = [
    Kind(*kind)
    for kind in itertools.product(
        (8, 16),
        ("minisblack", "miniswhite", "rgb", "rgba"),
        ("contig", "separate"),
        (None, "zlib", "lzw"),
        (None, (16, 16)),
        (1, 3, 6, 8),
    )
    if kind[1].startswith("rgb") or kind[2] == "contig"
]

# How a person turns what is stored, by the definition of the tag.
UPRIGHT = {
    1: lambda pixels: pixels,
    3: lambda pixels: pixels[::-1, ::-1],
    6: lambda pixels: np.rot90(pixels, -1),
    8: lambda pixels: np.rot90(pixels, 1),
}


def write(path, kind: Kind) -> np.ndarray:
    """Write random pixels; what a person sees of them, 0 to 255."""
    channels = {"rgb": 3, "rgba": 4}.get(kind.photometric, 1)
    white = 2**kind.bits - 1
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    pixels = np.random.default_rng(0).integers(0, white + 1, shape).astype(f"uint{kind.bits}")
    if channels == 4:
        pixels[..., 3] = white
    tifffile.imwrite(
        path,
        pixels if kind.planar == "contig" else np.moveaxis(pixels, -1, 0),
        photometric=kind.photometric[:3] if channels > 1 else kind.photometric,
        planarconfig=kind.planar if channels > 1 else None,
        compression=kind.compression,
        tile=kind.tile,
        extratags=[(274, "H", 1, kind.orientation, True)],
        **({"extrasamples": ["unassalpha"]} if channels == 4 else {}),
    )
    seen = pixels[..., :3] if channels > 1 else pixels
    seen = white - seen if kind.photometric == "miniswhite" else seen
    return UPRIGHT[kind.orientation](seen / (white / 255))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "rgba"])
def test_kinds(tmp_path, bits, photometric):
    kinds = [kind for kind in KINDS if (kind.bits, kind.photometric) == (bits, photometric)]
    assert len(kinds) >= 24
    for kind in kinds:
        path = tmp_path / "image.tif"
        expected = write(path, kind)
        for source in (path, path.read_bytes()):
            np.testing.assert_allclose(np.asarray(open_image(source)), expected, atol=1, err_msg=str(kind))
        header = read_header(path)
        assert (header.bits, header.channels) == (bits, 1 if photometric.startswith("minis") else 3)
        assert (header.height, header.width) == expected.shape[:2]


def test_without_tifffile_nothing_wrong_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = tmp_path / "image.tif"
    write(path, Kind(16, "rgb", "separate", None, None, 1))
    with pytest.raises(
        UserError, match=re.escape(f"16-bit planes; to read it: {install_command('science')}")
    ):
        open_image(path)
    write(path, Kind(16, "rgb", "separate", "zlib", None, 1))
    assert open_image(path).mode == "RGB"


def test_pages_of_separate_planes(tmp_path):
    planes = np.random.default_rng(1).integers(0, 2**16, (2, 3, HEIGHT, WIDTH)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", planes, photometric="rgb", planarconfig="separate")
    with Image.open(tmp_path / "image.tif") as image:
        image.seek(1)
        second = np.asarray(open_image(image))
    np.testing.assert_allclose(second, np.moveaxis(planes[1], 0, -1) / 257, atol=1)
