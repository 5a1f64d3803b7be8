"""Images are laid on one another as a slow computation does it, and come to lie where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from skipnets.data.alignment import align, aligned_distance, correlation, halved, resampling, unmoved


def smooth(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 6, 6), dtype=np.uint8)
    images = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in small]
    return np.stack([np.asarray(image) for image in images]).astype(np.float32)


def placed(image: np.ndarray, placement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image at scale and shift, bilinearly by SciPy, and where that is inside."""
    side = len(image)
    centers = (2 * np.arange(side) + 1) / side - 1
    scale, right, down = placement
    rows, columns = (np.clip(scale * centers + shift, centers[0], centers[-1]) for shift in (down, right))
    at = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    inside = [np.abs(scale * centers + shift) <= 1 for shift in (down, right)]
    return RegularGridInterpolator((centers, centers), image)(at), np.outer(*inside)


def test_resampling_is_scipys() -> None:
    images = smooth(3)
    placement = np.array([[1, 0, 0], [0.9, 0.1, -0.05], [1.2, -0.2, 0.15]], dtype=np.float32)
    rows, columns, inside = resampling(placement, 32)
    for index, image in enumerate(images):
        expected, where = placed(image, placement[index])
        assert (rows @ images @ columns)[index] == pytest.approx(expected, abs=1e-2)
        assert (inside[index] == where).all()


def test_a_step_is_the_least_squares_of_each_pair() -> None:
    """One pair at a time, by NumPy's least squares, with the same slight pull towards no change."""
    moving, fixed = smooth(4), smooth(4, seed=1)
    fixed[0] = moving[0] * 0.8 + 20
    placement = np.array([[1, 0, 0], [0.95, 0.05, 0], [1.1, 0, -0.1], [1, 0.1, 0.1]], dtype=np.float32)
    found = align(moving, fixed, placement, steps=1)
    centers = (2 * np.arange(32) + 1) / 32 - 1
    for index in range(4):
        down, right = (slope * 16 for slope in np.gradient(moving[index]))
        warped, down, right = (placed(part, placement[index])[0] for part in (moving[index], down, right))
        inside = placed(moving[index], placement[index])[1].ravel()
        larger = right * centers + down * centers[:, None]
        terms = np.stack([each.ravel() for each in (warped, larger, right, down, np.ones((32, 32)))], 1)[
            inside
        ]
        pull = np.sqrt(1e-5 * (terms**2).sum() + 1e-6) * np.eye(5)
        goal = np.concatenate([fixed[index].ravel()[inside], np.zeros(5)])
        solution = np.linalg.lstsq(np.concatenate([terms, pull]), goal)[0]
        change = np.clip(solution[1:4] / max(abs(solution[0]), 0.2), -0.1, 0.1)
        expected = np.clip(placement[index] + change, (0.8, -0.25, -0.25), (1.25, 0.25, 0.25))
        assert found[index] == pytest.approx(expected, abs=1e-3)


def test_a_crop_comes_to_lie_where_it_was_cut_out() -> None:
    moving = smooth(5)
    true = np.array([0.95, 0.04, -0.03], dtype=np.float32)
    fixed = np.stack([1.3 * placed(image, true)[0] - 15 for image in moving]).astype(np.float32)
    start = unmoved(5)
    found = align(moving, fixed, start, steps=6)
    assert found == pytest.approx(np.tile(true, (5, 1)), abs=1e-2)
    assert (aligned_distance(moving, fixed, found) < 0.03).all()
    assert (aligned_distance(moving, fixed, start) > 0.1).all()


def test_correlation_is_pearsons_over_the_pixels_that_count() -> None:
    one, other = smooth(3), smooth(3, seed=1)
    common = np.random.default_rng(0).random((3, 32, 32)) < 0.7
    expected = [np.corrcoef(a[where], b[where])[0, 1] for a, b, where in zip(one, other, common, strict=True)]
    assert correlation(one, other, common) == pytest.approx(expected, abs=1e-5)


def test_half_the_size_is_pillows_reduction() -> None:
    images = smooth(3).round()
    expected = [np.asarray(Image.fromarray(image).reduce(2)) for image in images]
    assert halved(images) == pytest.approx(np.stack(expected))
