"""Sources, damage, limits and regions of images; the expected values are worked out by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.images import STORED, png, saved

from skipnets.data.decoding import (
    FORMATS,
    MAX_PIXELS,
    ImageDecodeError,
    Page,
    open_image,
    open_region,
    read_header,
    render_image,
)
from skipnets.errors import UserError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = RANDOM.integers(0, 65536, (6, 5), dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(kind, orientation):
    # Blocks of 16, so that a JPEG keeps their colors.
    seen = RGB.repeat(16, axis=0).repeat(16, axis=1)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](seen)))
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = saved(stored, kind, exif=exif, **options)
    image = open_image(data)
    assert np.abs(np.asarray(image, dtype=int) - seen).max() <= (6 if kind == "JPEG" else 0)
    again = open_image(image)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))  # it is not turned twice
    whole, box = open_region(
        data, lambda width, height: (0, 0, width, height), size=seen.shape[:2], channels=3
    )
    assert box == (0, 0, 112, 80)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(image))


@pytest.mark.parametrize("source", ["path", "string", "file", "bytes", "image"])
def test_sources(source, tmp_path):
    path = tmp_path / "größe 1.png"
    Image.fromarray(RGB).save(path)
    given = {
        "path": lambda: path,
        "string": lambda: str(path),
        "file": lambda: io.BytesIO(path.read_bytes()),
        "bytes": path.read_bytes,
        "image": lambda: Image.open(path),
    }[source]()
    np.testing.assert_array_equal(np.asarray(open_image(given)), RGB)


def damaged(kind: str) -> bytes:
    jpeg = saved(Image.fromarray(RGB.repeat(40, 0).repeat(40, 1)), "JPEG")
    return {
        "truncated": jpeg[: len(jpeg) // 2],
        "empty": b"",
        "text": b"not an image\nat all",
        "floats": saved(Image.fromarray(RGB[:, :, 0].astype(np.float32)), "TIFF"),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "huge": png(WIDE, 0, size=(60_000, 60_000)),
        "large": png(WIDE, 0, size=(MAX_PIXELS // 9_000 + 1, 9_000)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated"),
        ("empty", "not an image in a known format"),
        ("text", "not an image in a known format"),
        ("floats", "32-bit pixels have no fixed range"),
        ("postscript", "not an image in a known format"),
        ("huge", "larger than 89,478,485 pixels"),
        ("large", "larger than 89,478,485 pixels"),
    ],
)
def test_damage_is_one_line_that_names_the_file(kind, message, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(damaged(kind))
    with pytest.raises(ImageDecodeError, match=message) as caught:
        open_image(path)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_large_images_are_refused_where_warnings_are_not_errors():
    with pytest.raises(ImageDecodeError, match="larger than"):
        open_image(damaged("large"))


def test_missing_file(tmp_path):
    with pytest.raises(ImageDecodeError, match="no such file"):
        open_image(tmp_path / "absent.png")


def natural(width: int, height: int) -> Image.Image:
    """An image with detail at every scale."""
    layers = [
        Image.fromarray(
            RANDOM.integers(0, 256, (height // step + 1, width // step + 1, 3), dtype=np.uint8)
        ).resize((width, height), Image.Resampling.BICUBIC)
        for step in (4, 16, 64)
    ]
    return Image.blend(Image.blend(layers[0], layers[1], 0.6), layers[2], 0.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("box", [(0, 0, 803, 601), (301, 200, 650, 550)])
def test_region_is_near_cropping_the_whole(channels, orientation, box):
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(natural(803, 601))))
    data = saved(Image.fromarray(stored), "JPEG", quality=90, exif=exif)
    sizes = []

    def choose(width, height):
        sizes.append((width, height))
        return box

    image, region = open_region(data, choose, size=(60, 80), channels=channels)
    got = np.asarray(image.resize((80, 60), Image.Resampling.BILINEAR, box=region), dtype=float)
    whole = open_image(data, channels).crop(box).resize((80, 60), Image.Resampling.BILINEAR)
    assert sizes == [(803, 601)]
    assert image.mode == ("L" if channels == 1 else "RGB")
    # A shift by half a pixel would cost several levels here.
    assert np.abs(got - np.asarray(whole, dtype=float)).mean() < 1.5


@pytest.mark.parametrize(
    ("box", "decoded"),
    [
        ((0, 0, 1600, 1200), (200, 150)),
        ((0, 0, 840, 630), (400, 300)),
        ((100, 50, 580, 410), (800, 600)),
        ((0, 0, 300, 220), (1600, 1200)),
    ],
)
def test_region_decodes_at_the_scale_that_it_needs(box, decoded):
    data = saved(natural(1600, 1200), "JPEG")
    image, region = open_region(data, lambda *_: box, size=(60, 80), channels=3)
    assert image.size == decoded
    assert region == tuple(edge * decoded[0] / 1600 for edge in box)


def test_paths_need_not_be_utf8(tmp_path):
    path = Path(str(tmp_path) + "/\udcff.png")
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(np.asarray(open_image(path)), RGB)


def test_a_stricter_bound_is_judged_before_decoding() -> None:
    whole = saved(Image.new("L", (20, 10)), "PNG")
    assert open_image(whole, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageDecodeError, match="larger than 199 pixels"):
        open_image(whole[:60], max_pixels=199)


@pytest.mark.parametrize(
    ("mode", "suffix", "bits", "channels"),
    [
        ("1", ".png", 1, 1),
        ("L", ".jpg", 8, 1),
        ("RGB", ".png", 8, 3),
        ("I;16", ".png", 16, 1),
        ("P", ".gif", 8, 3),
    ],
)
def test_header(tmp_path, mode, suffix, bits, channels):
    Image.new(mode, (7, 5)).save(tmp_path / f"image{suffix}")
    header = read_header(tmp_path / f"image{suffix}")
    assert (header.width, header.height, header.bits, header.channels) == (7, 5, bits, channels)
    assert not header.several


def test_the_guides_list_the_formats_that_are_read() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guide"
    listed = (guide / "data.md").read_text(encoding="utf-8").split("\n## Formats\n\n")[1].split(" files ")[0]
    names = {name.replace(" ", "").upper() for name in re.split(", | and ", listed)}
    assert names == set(FORMATS)
    assert f"not an image in a known format ({', '.join(FORMATS)})" in (guide / "serve.md").read_text("utf-8")


def test_a_limit_of_a_page_holds_for_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GRAY).save(path)
    with pytest.raises(ImageDecodeError, match=r"a\.png: larger than 34 pixels, the most that is read"):
        open_image(Page(path, None, 34))
    # Pillow's own limit gives way where one was raised knowingly, and only there.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr("skipnets.data.decoding.MAX_PIXELS", 10)
    with pytest.raises(ImageDecodeError, match=r"larger than 10 pixels.*--max-pixels allows more"):
        open_image(path)
    np.testing.assert_array_equal(np.asarray(open_image(Page(path, None, 35))), GRAY)
    with pytest.raises(ImageDecodeError, match="larger than 10 pixels"):
        open_image(path)


def test_rendering_stretches_what_has_no_fixed_range() -> None:
    ramp = np.linspace(-5, 5, 201, dtype=np.float32).reshape(1, -1).repeat(10, 0)
    shown = np.asarray(render_image(ramp)).astype(int)
    np.testing.assert_allclose(shown, np.clip((ramp + 4.95) / 9.9, 0, 1) * 255, atol=1)
    assert render_image(RANDOM.random((5, 6, 7))).mode == "RGB"
    assert render_image(np.full((5, 6), np.nan)).getextrema() == (0, 0)
    np.testing.assert_array_equal(np.asarray(render_image(GRAY)), GRAY)
