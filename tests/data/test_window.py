"""Windows are NumPy's percentiles of the training images' values; odd values have no part in them."""

from __future__ import annotations

import numpy as np
import pytest

from skipnets.data.dataset import ImageDataset
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.window import measure_window
from skipnets.errors import UserError

RANDOM = np.random.default_rng(0)


def dataset(images: np.ndarray, labels: np.ndarray | None = None) -> ImageDataset:
    count = len(images)
    return ImageDataset(
        classes=("a", "b"),
        names=[f"{index}" for index in range(count)],
        labels=np.arange(count) % 2 if labels is None else labels,
        splits=np.array(["train"] * count),
        images=images,
    )


def measured(images: np.ndarray, **options: object) -> tuple[tuple[float, float], ...]:
    images = np.asarray(images)
    channels = 1 if images.ndim == 3 else images.shape[3]
    return measure_window(dataset(images), range(len(images)), channels=channels, **options).window


def test_percentiles_of_all_values():
    images = RANDOM.normal(1000, 50, (20, 12, 15)).astype(np.uint16)
    [window] = measured(images)
    np.testing.assert_allclose(window, np.percentile(images, (0.5, 99.5)), rtol=1e-5)
    [window] = measured(images, percentiles=(10, 60))
    np.testing.assert_allclose(window, np.percentile(images, (10, 60)), rtol=1e-5)


# The sides of detectors and of crops, where steps of any length may fall on a few columns again and again.
SHAPES = [(1024, 1024), (2048, 512), (512, 2048), (640, 1000), (333, 777), (16, 8192), (8192, 16)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_percentiles_of_large_images(shape):
    row, column = np.mgrid[: shape[0], : shape[1]]
    # Bright but for a grid of dark lines, as between the fields of a detector.
    bright = (row % 16 > 1) & (column % 16 > 1)
    images = np.stack([np.where(bright, 20_000 + RANDOM.integers(0, 20_000, shape), 0) for _ in range(2)])
    images[0, -1, -1] = 65_535
    images = images.astype(np.uint16)
    for percentiles in ((0.5, 99.5), (10, 60), (45, 90)):
        found = measure_window(dataset(images), range(2), channels=1, percentiles=percentiles)
        expected = np.percentile(images, percentiles)
        np.testing.assert_allclose(found.window[0], expected, atol=500)
        assert (found.lowest, found.highest) == (0, 65_535)


def test_content_between_columns():
    images = np.zeros((2, 1024, 1024), np.uint16)
    images[:, 200:800, 449:511] = RANDOM.integers(20_000, 40_000, (2, 600, 62))
    found = measure_window(dataset(images), range(2), channels=1)
    np.testing.assert_allclose(found.window[0], np.percentile(images, (0.5, 99.5)), atol=500)
    assert (found.lowest, found.highest) == (0, images.max())


def test_what_few_pixels_have_is_in_the_window_of_a_large_image():
    images = np.zeros((2, 1024, 1024), np.float32)
    images[0, 5, 5], images[1, 6, 6] = 700, np.nan
    assert measured(images) == ((0, 700),)
    bands = np.stack([images, images + 1], axis=-1)
    assert measured(bands) == ((0, 700), (1, 701))


def test_each_band_has_its_own():
    images = (RANDOM.normal(0, 1, (20, 12, 15, 5)) * [1, 10, 1000, 1e-6, 5] + [0, 5, 0, 1, 0]).astype(
        np.float32
    )
    windows = np.array(measured(images))
    expected = np.percentile(images.reshape(-1, 5), (0.5, 99.5), axis=0).T
    spread = np.ptp(expected, axis=1)[:, None]
    np.testing.assert_allclose((windows - expected) / spread, 0, atol=1e-3)


def test_nan_and_infinities_do_not_count():
    images = RANDOM.random((10, 12, 15)).astype(np.float32)
    clean = measured(images)
    spoiled = np.concatenate([images, images[:3]])
    spoiled[10], spoiled[11], spoiled[12] = np.nan, np.inf, -np.inf
    assert measured(spoiled) == clean
    assert measured(np.full((3, 4, 5), np.nan, np.float32)) == ((0.0, 1.0),)


def test_rare_values_and_constant_images():
    sparse = np.zeros((10, 20, 20), np.uint16)
    sparse[:, 0, 0] = 700  # fewer than 0.5% of the values
    assert measured(sparse) == ((0, 700),)
    assert measured(np.full((4, 5, 6), 1234, np.uint16)) == ((1233.5, 1234.5),)
    low, high = measured(np.full((4, 5, 6), 1e12))[0]
    assert low < 1e12 < high
    got = Preprocessing((5, 6), channels=1, window=(1233.5, 1234.5), bits=16).pixels(
        np.full((5, 6), 1234, np.uint16)
    )
    np.testing.assert_array_equal(got, 127.5)


def test_tiny_ranges_keep_their_steps():
    steps = 1000 + np.arange(64, dtype=np.float64).reshape(1, 8, 8) * 1e-9
    [window] = measured(np.repeat(steps, 4, 0), percentiles=(0, 100))
    shown = Preprocessing((8, 8), channels=1, window=window, bits=64).pixels(steps[0])
    np.testing.assert_allclose(shown.ravel(), np.arange(64) / 63 * 255, atol=0.5)


def test_12_bits_in_16_use_the_whole_range():
    images = RANDOM.integers(0, 4096, (20, 12, 15), dtype=np.uint16)
    [window] = measured(images)
    shown = Preprocessing((12, 15), channels=1, window=window, bits=16).pixels(images[0])
    assert shown.min() < 5
    assert shown.max() > 250
    # Divided by 257, as 16 bits are without a window, they would be nearly black.
    assert Preprocessing((12, 15), channels=1).pixels(images[0]).max() < 17


def test_classes_of_different_depth_are_named():
    images = RANDOM.integers(0, 4096, (12, 9, 9), dtype=np.uint16)
    labels = np.arange(12) % 2
    assert not measure_window(dataset(images, labels), range(12), channels=1).warnings
    images[labels == 1] *= 16
    [warning] = measure_window(dataset(images, labels), range(12), channels=1).warnings
    assert warning.startswith('the values of "a" stay below 4,096 and those of "b" do not')
    # What is bright in one class alone is no difference in depth, and Hounsfield units have none.
    images[labels == 1] //= 8
    assert not measure_window(dataset(images, labels), range(12), channels=1).warnings
    units = images.astype(np.int32) * (1 + 15 * labels[:, None, None]) - 1024
    assert not measure_window(dataset(units, labels), range(12), channels=1).warnings


def test_color_has_one_window_and_images_of_8_bits_do_not_count(tmp_path):
    import tifffile
    from PIL import Image

    from skipnets.data.sources import open_dataset

    for label in "ab":
        (tmp_path / label).mkdir()
        color = RANDOM.integers(0, 1000, (8, 9, 3)).astype(np.uint16) + np.array([0, 5000, 0], np.uint16)
        tifffile.imwrite(tmp_path / label / "deep.tif", color, photometric="rgb")
        Image.fromarray(np.full((8, 9, 3), 200, np.uint8)).save(tmp_path / label / "shallow.png")
    found = measure_window(open_dataset(tmp_path, fractions=None), range(4), channels=3)
    assert found.window == (found.window[0],) * 3
    assert (found.lowest >= 0, found.highest > 5000) == (True, True)
    assert found.window[0][1] > 5000


@pytest.mark.parametrize("percentiles", [(5, 5), (60, 10), (-1, 50), (0, 101)])
def test_impossible_percentiles(percentiles):
    with pytest.raises(
        UserError, match=r"percentiles=.*must be two numbers from 0 to 100, the lower one first"
    ):
        measured(np.zeros((2, 3, 3), np.uint16), percentiles=percentiles)
