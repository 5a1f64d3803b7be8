"""Every kind of image that Pillow reads, as a person sees it; the expected values are worked out by hand."""

from __future__ import annotations

import struct
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from tests.helpers.images import png, saved

from skipnets.data.decoding import (
    ImageDecodeError,
    open_image,
    read_header,
    read_values,
)

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = RANDOM.integers(0, 65536, (6, 5), dtype=np.uint16)


def as_array(data: bytes, channels: int | None = None) -> np.ndarray:
    return np.asarray(open_image(data, channels))


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


@pytest.mark.parametrize("data", [png(WIDE, 0), saved(Image.fromarray(WIDE), "TIFF")], ids=["png", "tiff"])
def test_sixteen_bit_gray_is_divided_by_257(data):
    np.testing.assert_array_equal(as_array(data, 1), np.rint(WIDE / 257))
    assert as_array(data, 3).shape == (6, 5, 3)


def test_sixteen_bit_color_is_within_a_level():
    color = RANDOM.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    assert np.abs(as_array(png(color, 2)) - color / 257).max() < 1
    exact = color // 257 * 257
    np.testing.assert_array_equal(as_array(png(exact, 2)), exact // 257)


def test_damaged_exif_does_not_matter():
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(as_array(data), RGB)


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


def test_header_of_16_bit_colors():
    header = read_header(png(np.zeros((1, 1, 3), dtype=np.uint16), 2))
    assert (header.bits, header.channels, header.format) == (16, 3, "PNG")


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
