"""The nearest are those that comparing everything with everything finds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from skipnets.data.nearest import find_nearest

TURNS = np.array([True, False, True, False, False])


def some(count: int, seed: int = 0) -> np.ndarray:
    """Descriptors in lumps, so that some have many neighbors and some have none."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(40, len(TURNS)))
    found = centers[generator.integers(0, 40, count)] + 0.3 * generator.normal(size=(count, len(TURNS)))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [3, 512, 1300])
def test_they_are_those_of_scikit_learn(count: int) -> None:
    descriptors = some(count)
    index = NearestNeighbors(n_neighbors=min(4, count), algorithm="brute").fit(descriptors)
    mirrored = descriptors * np.where(TURNS, -1, 1).astype(np.float32)
    for found, queries in zip(
        find_nearest(descriptors, TURNS, 4, within=0.3), (descriptors, mirrored), strict=True
    ):
        distances, positions = index.kneighbors(queries)
        near = np.zeros((count, 4), dtype=bool)
        near[:, : distances.shape[1]] = distances < 0.3
        assert (np.isfinite(found.distances) == near).all()
        assert (found.positions[~near] == -1).all()
        assert found.distances[near] == pytest.approx(distances[near[:, : distances.shape[1]]], abs=2e-3)
        # Among images that are equally far, any may be taken.
        apart = np.linalg.norm(descriptors[found.positions] - queries[:, None], axis=2)
        assert apart[near] == pytest.approx(found.distances[near], abs=2e-3)
        assert all(len({*row} - {-1}) == (row >= 0).sum() for row in found.positions)
        assert (found.positions == np.pad(positions, ((0, 0), (0, near.shape[1] - positions.shape[1]))))[
            near
        ].mean() > 0.99


def test_progress_goes_up_to_the_end() -> None:
    told: list[float] = []
    find_nearest(some(1300), TURNS, 2, within=0.3, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
