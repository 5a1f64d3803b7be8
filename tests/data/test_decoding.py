"""Every kind of image comes out as a person sees it; the expected values are worked out by hand."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from skipnets.data.decoding import (
    FORMATS,
    MAX_PIXELS,
    ImageDecodeError,
    Page,
    open_image,
    open_region,
    read_header,
    read_values,
    render_image,
)
from skipnets.errors import UserError


def png(pixels: np.ndarray, color_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A 16-bit PNG written after the specification, independently of Pillow."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    width, height = size or (pixels.shape[1], pixels.shape[0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_array(data: bytes, channels: int | None = None) -> np.ndarray:
    return np.asarray(open_image(data, channels))


RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats(kind, options):
    np.testing.assert_array_equal(as_array(saved(Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_stays_gray_and_fills_three_channels(kind):
    data = saved(Image.fromarray(GRAY), kind)
    np.testing.assert_array_equal(as_array(data, 1), GRAY)
    np.testing.assert_array_equal(as_array(data, 3), np.stack([GRAY] * 3, axis=2))


def test_jpeg_is_near():
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None], (16, 16, 3))
    assert (
        np.abs(as_array(saved(Image.fromarray(smooth), "JPEG", quality=95)) - smooth.astype(int)).max() <= 4
    )


def test_color_becomes_gray_by_luma():
    got = as_array(saved(Image.fromarray(RGB), "PNG"), 1)
    np.testing.assert_allclose(got, RGB @ [0.299, 0.587, 0.114], atol=1)


def test_one_bit():
    bits = RANDOM.random((4, 9)) < 0.5
    np.testing.assert_array_equal(as_array(saved(Image.fromarray(bits), "PNG"), 1), bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_on_white(kind):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    image = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    got = as_array(saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    np.testing.assert_allclose(got, RGB * (alpha / 255) + 255 * (1 - alpha / 255), atol=1)


def test_gray_with_alpha():
    image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[0, 255]], np.uint8))])
    np.testing.assert_array_equal(as_array(saved(image, "PNG"), 1), [[255, 100]])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_palette_with_transparency(transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    got = as_array(saved(image, "PNG", transparency=transparency))
    assert got.tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_color_key_transparency():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert as_array(saved(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize(("kind", "options", "error"), [("TIFF", {}, 1), ("JPEG", {"quality": 100}, 4)])
def test_cmyk(kind, options, error):
    ink = (51, 102, 153, 25)
    image = Image.new("CMYK", (16, 16), ink)
    c, m, y, k = (value / 255 for value in ink)
    expected = [255 * (1 - part) * (1 - k) for part in (c, m, y)]
    np.testing.assert_allclose(as_array(saved(image, kind, **options)).mean((0, 1)), expected, atol=error)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert as_array(data, 3)[0, 0].tolist() == [255, 0, 0]


WIDE = RANDOM.integers(0, 65536, (6, 5), dtype=np.uint16)


@pytest.mark.parametrize("data", [png(WIDE, 0), saved(Image.fromarray(WIDE), "TIFF")], ids=["png", "tiff"])
def test_sixteen_bit_gray_is_divided_by_257(data):
    np.testing.assert_array_equal(as_array(data, 1), np.rint(WIDE / 257))
    assert as_array(data, 3).shape == (6, 5, 3)


def test_sixteen_bit_color_is_within_a_level():
    color = RANDOM.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    assert np.abs(as_array(png(color, 2)) - color / 257).max() < 1
    exact = color // 257 * 257
    np.testing.assert_array_equal(as_array(png(exact, 2)), exact // 257)


# EXIF 2.32, tag 274: which side of the scene the stored rows and columns begin at.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}


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


def test_damaged_exif_does_not_matter():
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(as_array(data), RGB)


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


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GRAY, GRAY),
        (GRAY[:, :, None], GRAY),
        (RGB, RGB),
        (WIDE, np.rint(WIDE / 257)),
        (np.concatenate([RGB, np.zeros_like(RGB[:, :, :1])], axis=2), np.full_like(RGB, 255)),
    ],
)
def test_arrays(array, expected):
    np.testing.assert_array_equal(np.asarray(open_image(array)), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [(RGB / 255, "uint8"), (RGB[None], r"\(H, W, 3\)"), (RGB[:, :, :2], r"\(H, W, 3\)"), (RGB[:0], "empty")],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(ImageDecodeError, match=message):
        open_image(array)


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


def test_header_of_16_bit_colors():
    header = read_header(png(np.zeros((1, 1, 3), dtype=np.uint16), 2))
    assert (header.bits, header.channels, header.format) == (16, 3, "PNG")


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


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
@pytest.mark.parametrize("filtered", [False, True])
def test_all_16_bits_of_a_png(color_type: int, filtered: bool) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    pixels = RANDOM.integers(0, 65536, (6, 5, channels), dtype=np.uint16)
    data = imagecodecs.png_encode(pixels) if filtered else png(pixels, color_type)
    np.testing.assert_array_equal(read_values(data, channels).array, pixels)
    assert read_header(data).bits == 16


def test_all_16_bits_of_gray_with_alpha() -> None:
    pixels = RANDOM.integers(0, 65536, (6, 5, 2), dtype=np.uint16)
    opacity = pixels[:, :, 1:] / 65535
    laid = pixels[:, :, :1] * opacity + 65535 * (1 - opacity)
    for channels in (None, 1):
        np.testing.assert_allclose(read_values(png(pixels, 4), channels).array, laid, atol=0.5)
    np.testing.assert_allclose(as_array(png(pixels, 4), 1), laid[:, :, 0] / 257, atol=2)
    header = read_header(png(pixels, 4))
    assert (header.bits, header.channels) == (16, 1)
    # Turned upright, too.
    exif = Image.Exif()
    exif[274] = 6
    content = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = png(pixels, 4)
    place = data.index(b"IDAT") - 4
    np.testing.assert_array_equal(
        read_values(data[:place] + chunk + data[place:], 2).array, np.rot90(pixels, -1)
    )


def test_values_of_8_bits_are_the_image() -> None:
    np.testing.assert_array_equal(read_values(saved(Image.fromarray(RGB), "PNG")).array, RGB)
    np.testing.assert_array_equal(read_values(GRAY).array[:, :, 0], GRAY)
    ink = np.array([[[1, 2, 3, 4]]], np.uint8)
    np.testing.assert_array_equal(read_values(Image.fromarray(ink, "CMYK"), 4).array, ink)


def test_rendering_stretches_what_has_no_fixed_range() -> None:
    ramp = np.linspace(-5, 5, 201, dtype=np.float32).reshape(1, -1).repeat(10, 0)
    shown = np.asarray(render_image(ramp)).astype(int)
    np.testing.assert_allclose(shown, np.clip((ramp + 4.95) / 9.9, 0, 1) * 255, atol=1)
    assert render_image(RANDOM.random((5, 6, 7))).mode == "RGB"
    assert render_image(np.full((5, 6), np.nan)).getextrema() == (0, 0)
    np.testing.assert_array_equal(np.asarray(render_image(GRAY)), GRAY)
