"""What the readers share, against Pillow's own way of doing it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from skipnets.data.raster import Values, WindowedImage, check_page, eight_bits, fit_channels, turn_upright

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_pillow_turns(orientation):
    pixels = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    np.testing.assert_array_equal(
        turn_upright(pixels, orientation), np.asarray(ImageOps.exif_transpose(image))
    )


def test_channels_become_others_as_in_pillow():
    color = RANDOM.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    gray = fit_channels(Values(array=color, bits=8), 1).array[:, :, 0]
    np.testing.assert_allclose(gray, np.asarray(Image.fromarray(color).convert("L")), atol=1)
    three = fit_channels(Values(array=color[:, :, :1], bits=8), 3).array
    np.testing.assert_array_equal(three, np.repeat(color[:, :, :1], 3, axis=2))
    with pytest.raises(ValueError, match="has 3 channels where 5 are expected"):
        fit_channels(Values(array=color, bits=8), 5)


def test_alpha_is_laid_on_white():
    deep = RANDOM.integers(0, 65536, (6, 5, 4), dtype=np.uint16)
    opacity = deep[:, :, 3:] / 65535
    laid = fit_channels(Values(array=deep, bits=16, alpha=True), 3).array
    np.testing.assert_allclose(laid, deep[:, :, :3] * opacity + 65535 * (1 - opacity), atol=0.5)
    assert fit_channels(Values(array=deep, bits=16, alpha=True), 4).array is deep


def test_associated_alpha_is_multiplied_once():
    deep = RANDOM.integers(0, 65536, (6, 5, 4), dtype=np.uint16)
    opacity = deep[:, :, 3:] / 65535
    associated = deep.copy()
    associated[:, :, :3] = np.rint(deep[:, :, :3] * opacity)
    once, expected = (
        fit_channels(Values(array=array, bits=16, alpha=True, premultiplied=kind), 3).array.astype(int)
        for array, kind in ((associated, True), (deep, False))
    )
    np.testing.assert_allclose(once, expected, atol=1)
    # A damaged file may have colors that are brighter than their alpha allows.
    associated[:, :, :3] = 65535
    assert (
        fit_channels(Values(array=associated, bits=16, alpha=True, premultiplied=True), 3).array == 65535
    ).all()


def test_transparency_is_white_where_white_is_low_and_in_few_bits():
    clear = np.array([[[100, 0], [100, 255]]], np.uint8)
    for low, white in ((False, 255), (True, 0)):
        laid = fit_channels(Values(array=clear, bits=4, alpha=True, white_is_low=low), 1).array
        np.testing.assert_array_equal(laid[0, :, 0], [white, 100])


@pytest.mark.parametrize("bits", range(1, 9))
def test_few_bits_run_from_black_to_white(bits):
    stored = np.arange(2**bits, dtype=np.uint16)
    shown = eight_bits(stored, bits)
    np.testing.assert_array_equal(shown, [round(value / (2**bits - 1) * 255) for value in stored.tolist()])
    np.testing.assert_array_equal(eight_bits(np.array([-3, 300, 65535], np.int32), bits), [0, 255, 255])


def test_pages_that_are_not_there():
    assert check_page(2, 3) == 2
    for page in (-1, 3):
        with pytest.raises(ValueError, match="no such page"):
            check_page(page, 3)


def test_bands_are_shown_as_gray_or_color():
    values = RANDOM.uniform(0, 255, (4, 6, 5)).astype(np.float32)
    assert WindowedImage(values).size == (6, 4)
    np.testing.assert_array_equal(
        np.asarray(WindowedImage(values).shown((4, 0, 2))), np.rint(values[:, :, [4, 0, 2]])
    )
    assert WindowedImage(values[:, :, :2]).shown().mode == "L"
