"""Every kind of TIFF is decoded to the array that tifffile wrote, from a path as from bytes."""

from __future__ import annotations

import itertools
import re
import struct
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from skipnets.data.decoding import ImageDecodeError, open_image, read_header, read_values
from skipnets.data.preprocessing import Preprocessing
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
        ("minisblack", "miniswhite", "rgb", "rgba", "rgba, associated"),
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
    channels = {"rgb": 3, "rgba": 4, "rgba, associated": 4}.get(kind.photometric, 1)
    associated = kind.photometric.endswith("associated")
    white = 2**kind.bits - 1
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    pixels = np.random.default_rng(0).integers(0, white + 1, shape).astype(f"uint{kind.bits}")
    if channels == 4:
        # Opaque, half transparent and transparent; what is transparent alone is white.
        opacity = np.random.default_rng(1).choice([white, white // 3, 0], shape[:2])
        pixels[..., 3] = opacity
        if associated:
            pixels[..., :3] = np.rint(pixels[..., :3] * (opacity / white)[..., None])
    tifffile.imwrite(
        path,
        pixels if kind.planar == "contig" else np.moveaxis(pixels, -1, 0),
        photometric=kind.photometric[:3] if channels > 1 else kind.photometric,
        planarconfig=kind.planar if channels > 1 else None,
        compression=kind.compression,
        tile=kind.tile,
        extratags=[(274, "H", 1, kind.orientation, True)],
        **({"extrasamples": ["assocalpha" if associated else "unassalpha"]} if channels == 4 else {}),
    )
    seen = pixels[..., :3].astype(float) if channels > 1 else pixels
    if channels == 4:
        share = (opacity / white)[..., None]
        seen = (seen if associated else seen * share) + white * (1 - share)
    seen = white - seen if kind.photometric == "miniswhite" else seen
    return UPRIGHT[kind.orientation](seen / (white / 255))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "rgba", "rgba, associated"])
def test_kinds(tmp_path, bits, photometric):
    kinds = [kind for kind in KINDS if (kind.bits, kind.photometric) == (bits, photometric)]
    assert len(kinds) >= 24
    for kind in kinds:
        path = tmp_path / "image.tif"
        expected = write(path, kind)
        for source in (path, path.read_bytes()):
            np.testing.assert_allclose(np.asarray(open_image(source)), expected, atol=1, err_msg=str(kind))
            values = read_values(source, expected.shape[2] if expected.ndim == 3 else 1)
            exact = values.array.reshape(expected.shape) / (2**bits - 1) * 255
            # White is inverted after the window; Pillow has done so with 8 bits.
            exact = 255 - exact if values.white_is_low else exact
            # Rounded once where it was laid on white; in 8 bits by Pillow.
            step = 0 if not photometric.startswith("rgba") else 1 if bits == 8 else 255 / 65535
            np.testing.assert_allclose(exact, expected, atol=step + 1e-9, err_msg=str(kind))
        header = read_header(path)
        assert (header.bits, header.channels) == (bits, 1 if photometric.startswith("minis") else 3)
        assert (header.height, header.width) == expected.shape[:2]


def test_without_tifffile_nothing_wrong_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("skipnets.data.tiff.can_read_all_tiff", lambda: False)
    path = tmp_path / "image.tif"
    write(path, Kind(16, "rgb", "separate", None, None, 1))
    with pytest.raises(
        UserError, match=rf"separate planes.*; to read it: {re.escape(install_command('science'))}"
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


BANDS = [
    *itertools.product(("u1", "u2", "f4"), (2, 4, 5, 7), ("contig", "separate"), (None, "zlib"), (1, 6)),
    *itertools.product(("i2", "f2", "f8", "u4"), (1, 5), ("contig",), ("deflate",), (3, 8)),
]


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "i2", "f2", "f8", "u4"])
def test_bands(tmp_path, dtype):
    for _, count, planar, compression, orientation in (kind for kind in BANDS if kind[0] == dtype):
        shape = (HEIGHT, WIDTH, count) if planar == "contig" else (count, HEIGHT, WIDTH)
        pixels = (np.random.default_rng(count).random(shape) * 200).astype(dtype)
        path = tmp_path / "bands.tif"
        tifffile.imwrite(
            path,
            pixels[:, :, 0] if count == 1 else pixels,
            photometric="minisblack",
            planarconfig=planar if count > 1 else None,
            compression=compression,
            extratags=[(274, "H", 1, orientation, True)],
        )
        expected = UPRIGHT[orientation](pixels if planar == "contig" else np.moveaxis(pixels, 0, -1))
        for source in (path, path.read_bytes()):
            values = read_values(source, count)
            np.testing.assert_array_equal(values.array, expected, err_msg=f"{dtype} {count} {planar}")
        header = read_header(path)
        assert (header.height, header.width, header.channels) == expected.shape


def test_pages_are_bands_where_as_many_are_wanted(tmp_path):
    bands = np.random.default_rng(2).integers(0, 4096, (5, HEIGHT, WIDTH)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack")
    got = read_values(tmp_path / "bands.tif", 5)
    np.testing.assert_array_equal(got.array, np.moveaxis(bands, 0, -1))
    np.testing.assert_array_equal(read_values(tmp_path / "bands.tif", 1).array[:, :, 0], bands[0])
    with pytest.raises(ImageDecodeError, match="has 1 channels where 4 are expected"):
        read_values(tmp_path / "bands.tif", 4)


def test_a_fourth_band_is_a_band_where_four_are_wanted(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "rgbi.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_values(tmp_path / "rgbi.tif", 4).array, pixels)
    opacity = pixels[:, :, 3:] / 65535
    laid = pixels[:, :, :3] * opacity + 65535 * (1 - opacity)
    np.testing.assert_allclose(read_values(tmp_path / "rgbi.tif", 3).array, laid, atol=0.5)


def test_12_bits_packed():
    pixels = np.random.default_rng(4).integers(0, 4096, (HEIGHT, WIDTH))
    digits = "".join(f"{value:012b}" for value in pixels.ravel())
    packed = int(digits, 2).to_bytes(len(digits) // 8, "big")
    tags = [(256, WIDTH), (257, HEIGHT), (258, 12), (259, 1), (262, 0), (273, 8), (277, 1), (278, HEIGHT)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(packed))])
    data = (
        struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + struct.pack("<H", 9) + entries + bytes(4)
    )
    assert read_header(data).bits == 12
    values = read_values(data)
    assert values.white_is_low
    np.testing.assert_array_equal(values.array[:, :, 0], pixels)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_few_bits_end_in_white(tmp_path, bits):
    top = 2**bits - 1
    pixels = np.random.default_rng(6).integers(0, top + 1, (HEIGHT, WIDTH)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "few.tif", pixels, bitspersample=bits, photometric="minisblack")
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "few.tif")), pixels / top * 255, atol=0.5)


def test_white_is_low_is_shown_inverted(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "w.tif", pixels, photometric="miniswhite")
    got = Preprocessing((HEIGHT, WIDTH), channels=1, window=(0, 4095), bits=16).pixels(tmp_path / "w.tif")
    np.testing.assert_allclose(got[:, :, 0], 255 - pixels / 4095 * 255, atol=1e-3)


def write_bands(path):
    pixels = np.zeros((HEIGHT, WIDTH, 5), np.uint8)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


def test_bands_without_tifffile(tmp_path, monkeypatch):
    write_bands(tmp_path / "b.tif")
    monkeypatch.setattr("skipnets.data.tiff.can_read_all_tiff", lambda: False)
    with pytest.raises(ImageDecodeError, match=r"a TIFF file of bands, .*to read it: pip install"):
        read_values(tmp_path / "b.tif")


def test_a_declared_size_is_not_decoded(tmp_path):
    write_bands(tmp_path / "b.tif")
    data = bytearray((tmp_path / "b.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        for tag in ("ImageWidth", "ImageLength"):
            offset = file.pages[0].tags[tag].valueoffset
            data[offset : offset + 2] = (60000).to_bytes(2, "little")
    with pytest.raises(ImageDecodeError, match="larger than 89,478,485 pixels"):
        read_values(bytes(data))
