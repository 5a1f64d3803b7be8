"""Pictures of volumes and signals."""

from __future__ import annotations

import tracemalloc

import numpy as np
from PIL import Image

from skipnets.data.preprocessing import Preprocessing
from skipnets.insight.planes import curve_image, curve_map, planes_image, planes_map, shown_image


def test_each_plane_lies_in_its_place_in_its_proportions() -> None:
    sides, center = (6, 4, 8), (1, 2, 5)
    for axis, corner in ((0, (0, 0)), (1, (0, 102)), (2, (198, 0))):
        values = np.zeros(sides, np.float32)
        # One line of the plane: the last row of the one across the depth, the top row of the others.
        values[
            (1, 3, slice(None)) if axis == 0 else (5, 2, slice(None)) if axis == 1 else (5, slice(None), 5)
        ] = 1
        found = planes_map(values, (1, 1, 1), center)
        left, top = corner
        rows, columns = {0: (96, 192), 1: (144, 192), 2: (144, 96)}[axis]
        plane = found[top : top + rows, left : left + columns]
        line = plane[-1] if axis == 0 else plane[0]
        assert line.min() > 0.9
        assert plane[0 if axis == 0 else -1].max() == 0
    assert found.shape == planes_image(values, (1, 1, 1), center).size[::-1]
    # Thick slices are as thick as they are.
    assert planes_map(values, (2, 1, 1), center).shape[0] > planes_map(values, (1, 1, 1), center).shape[0]


def test_curves_lie_one_below_the_other() -> None:
    signal = np.stack([np.linspace(0, 1, 50), np.zeros(50)], axis=1).astype(np.float32)
    image = np.asarray(curve_image(signal))
    assert image.shape == (240, 400)
    dark = np.argwhere(image < 128)
    upper, lower = dark[dark[:, 0] < 120], dark[dark[:, 0] >= 120]
    assert np.corrcoef(upper.T)[0, 1] < -0.99  # it rises
    assert np.ptp(lower[:, 0]) < 5
    found = curve_map(np.arange(400, dtype=np.float32), 7)
    np.testing.assert_array_equal(found, np.repeat(np.arange(400)[None], 7, 0))


def test_whatever_a_model_takes_is_shown() -> None:
    volume, signal = np.arange(60.0).reshape(3, 4, 5), np.arange(20.0)
    image = Image.new("RGB", (7, 5))
    for dims, source in ((1, signal), (2, image), (3, volume)):
        preprocessing = Preprocessing(
            (4,) * dims, channels=3 if dims == 2 else 1, window=None if dims == 2 else (0, 60)
        )
        assert isinstance(shown_image(preprocessing, source), Image.Image)


def test_a_long_signal_is_drawn_of_few_points_with_every_peak() -> None:
    signal = np.zeros((2_000_000, 1), np.float32)
    signal[500_001] = 1
    tracemalloc.start()
    try:
        image = np.asarray(curve_image(signal))
        assert tracemalloc.get_traced_memory()[1] < 2 * signal.nbytes
    finally:
        tracemalloc.stop()
    columns = np.flatnonzero((image[:120] < 128).any(0))
    assert len(columns)
    assert 98 <= columns.min() <= columns.max() <= 102
