"""Images in NumPy's files come out as they were saved."""

from __future__ import annotations

import io

import numpy as np
import pytest

from skipnets.data.decoding import ImageDecodeError, open_image, read_header, read_values
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError

RANDOM = np.random.default_rng(0)


def saved(array: np.ndarray, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    if arrays:
        np.savez_compressed(file, array, **arrays)
    else:
        np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (6, 9, 3), (6, 9, 5), (5, 6, 9), (2, 6, 9)])
def test_every_number_type_and_layout(dtype, shape):
    array = (RANDOM.random(shape) * 100).astype(dtype)
    values = read_values(saved(array))
    expected = np.moveaxis(array, 0, 2) if shape in ((5, 6, 9), (2, 6, 9)) else array.reshape(6, 9, -1)
    np.testing.assert_array_equal(values.array, expected)
    assert values.array.dtype.isnative
    header = read_header(saved(array))
    assert (header.height, header.width, header.channels) == expected.shape
    assert header.bits == (8 if dtype == "u1" else max(16, 8 * array.dtype.itemsize))


def test_where_channels_are_is_known_by_their_number():
    array = RANDOM.random((4, 6, 4))
    np.testing.assert_array_equal(read_values(saved(array), 4).array, array)
    first = RANDOM.random((12, 9, 5))
    np.testing.assert_array_equal(read_values(saved(first), 12).array, np.moveaxis(first, 0, 2))


def test_masks_are_black_and_white():
    mask = RANDOM.random((4, 5)) < 0.5
    np.testing.assert_array_equal(np.asarray(open_image(saved(mask))), mask * 255)


def test_8_and_16_bits_are_images_as_before(tmp_path):
    array = RANDOM.integers(0, 65536, (5, 6, 3), dtype=np.uint16)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.npy")), np.rint(array / 257))


def test_archives_hold_one_image():
    image, mask = RANDOM.random((4, 5)), RANDOM.random((4, 5))
    np.testing.assert_array_equal(read_values(saved(mask, image=image)).array[:, :, 0], image)
    with pytest.raises(ImageDecodeError, match=r'holds 2 arrays \(other, arr_0\); .* must be called "image"'):
        read_values(saved(mask, other=image))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(np.zeros((2, 3, 4, 5))), "must be .H, W."),
        (saved(np.zeros((0, 5))), "not empty"),
        (saved(np.zeros((4, 15))).replace(b"(4, 15)", b"(4, -5)"), "not empty"),
        (saved(np.zeros((4, 5), complex)), "complex128: must be"),
        (saved(np.array([[{}]], dtype=object)), "object: must be"),
        (saved(np.zeros((8, 8)))[:200], "image: "),
    ],
)
def test_arrays_that_are_no_images(data, message):
    with pytest.raises(ImageDecodeError, match=message):
        read_values(data)


def test_a_declared_size_is_not_allocated():
    header = saved(np.zeros((2, 2), np.uint8)).replace(b"(2, 2), }" + b" " * 10, b"(99999, 99999), }  ")
    assert b"99999" in header
    with pytest.raises(ImageDecodeError, match=r"larger than 89,478,485 pixels.*--max-pixels allows more"):
        read_values(header)


def test_arrays_beside_images_are_named(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        open_image(RANDOM.integers(0, 256, (4, 5), dtype=np.uint8)).save(tmp_path / label / "x.png")
        np.save(tmp_path / label / "y.npy", RANDOM.random((4, 5)))
    dataset = open_dataset(tmp_path, fractions=None)
    assert len(dataset) == 4
    assert any(
        "2 arrays beside images are read as images, such as a/y.npy" in w for w in dataset.listing.warnings
    )
    np.save(tmp_path / "a" / "z.npy", RANDOM.random((9, 8, 6)))
    with pytest.raises(UserError, match=r"channels: images of 1 and 6 channels are mixed, .*--exclude"):
        _ = open_dataset(tmp_path, fractions=None).channels
