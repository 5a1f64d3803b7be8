"""Metrics of numbers against scikit-learn, and their intervals against resampling in the obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from skipnets.evaluation.intervals import wilson_interval
from skipnets.evaluation.regression import error_metrics, measure_numbers


def some(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    numbers = generator.normal((1e6, -3), (10, 0.2), (count, 2))
    return numbers + generator.normal(0.5, (3, 0.1), (count, 2)), numbers


def test_metrics_are_scikit_learns() -> None:
    predicted, numbers = some()
    found = error_metrics(predicted, numbers)
    options = {"multioutput": "raw_values"}
    np.testing.assert_allclose(found["mae"], mean_absolute_error(numbers, predicted, **options))
    np.testing.assert_allclose(found["rmse"], root_mean_squared_error(numbers, predicted, **options))
    np.testing.assert_allclose(found["r2"], r2_score(numbers, predicted, **options), rtol=1e-6)
    np.testing.assert_allclose(found["bias"], (predicted - numbers).mean(0))


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_percentiles_of_resampled_images_or_groups(grouped: bool) -> None:
    predicted, numbers = some(30)
    groups = np.array([f"g{index // 3}" for index in range(30)]) if grouped else None
    metrics = measure_numbers(predicted, numbers, groups=groups, resamples=300)
    assert metrics.groups == (10 if grouped else None)
    count = 10 if grouped else 30
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, count, (300, count))
    samples = []
    for units in drawn:
        rows = np.concatenate([np.arange(3 * unit, 3 * unit + 3) for unit in units]) if grouped else units
        samples.append(
            [r2_score(numbers[rows, 0], predicted[rows, 0]), np.abs(predicted - numbers)[rows, 0].mean()]
        )
    expected = np.percentile(samples, (2.5, 97.5), axis=0)
    np.testing.assert_allclose(metrics.intervals["r2"][0], expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(metrics.intervals["mae"][0], expected[:, 1])


def test_numbers_that_are_all_equal_have_no_r2() -> None:
    numbers = np.full((5, 1), 1e6 / 3)
    metrics = measure_numbers(numbers + 1, numbers)
    assert np.isnan(metrics.targets["r2"]).all()
    assert np.isnan(metrics.intervals["r2"]).all()
    assert metrics.targets["mae"][0] == pytest.approx(1)


def test_one_image_has_no_interval() -> None:
    metrics = measure_numbers(np.array([[1.0]]), np.array([[2.0]]))
    assert metrics.targets["mae"][0] == 1
    assert np.isnan(metrics.intervals["mae"]).all()


def test_grades_count_as_right_or_nearly_right() -> None:
    predicted, numbers = np.array([[1.0], [2.0], [4.0], [0.0]]), np.array([[1.0], [1.0], [1.0], [0.0]])
    metrics = measure_numbers(predicted, numbers, ordinal=True)
    assert (metrics.targets["exact"][0], metrics.targets["within_one"][0]) == (0.5, 0.75)
    perfect = measure_numbers(numbers, numbers, ordinal=True)
    assert perfect.intervals["exact"][0] == pytest.approx(wilson_interval(4, 4))
    assert "exact" not in error_metrics(predicted, numbers)


def test_numbers_that_are_not_known_count_nothing() -> None:
    predicted, numbers = some(40)
    numbers[::3, 0] = np.nan
    groups = np.array([f"g{index // 2}" for index in range(40)])
    metrics = measure_numbers(predicted, numbers, groups=groups, resamples=200)
    assert metrics.known.tolist() == [26, 40]
    for index in range(2):
        known = np.isfinite(numbers[:, index])
        alone = measure_numbers(
            predicted[known, index : index + 1], numbers[known, index : index + 1], resamples=0
        )
        for name, values in metrics.targets.items():
            assert values[index] == pytest.approx(alone.targets[name][0], rel=1e-9)
    # Draws are of all groups, also of those in which a number is not known.
    drawn = np.random.default_rng(0).integers(0, 20, (200, 20))
    names = [f"g{index}" for index in range(20)]
    order = np.argsort(names)
    samples = []
    for units in drawn:
        rows = np.concatenate([[2 * order[unit], 2 * order[unit] + 1] for unit in units])
        samples.append(np.nanmean(np.abs(predicted - numbers)[rows, 0]))
    np.testing.assert_allclose(metrics.intervals["mae"][0], np.percentile(samples, (2.5, 97.5)))


def test_a_target_that_no_image_has_is_undefined_and_one_of_one_group_has_no_interval() -> None:
    predicted, numbers = some(8)
    numbers[:, 0] = np.nan
    numbers[2:, 1] = np.nan
    metrics = measure_numbers(predicted, numbers, groups=np.array(["a"] * 4 + ["b"] * 4), ordinal=True)
    assert all(np.isnan(values[0]) for values in metrics.targets.values())
    assert all(np.isnan(limits[0]).all() for limits in metrics.intervals.values())
    assert np.isfinite(metrics.targets["mae"][1])
    assert np.isnan(metrics.intervals["mae"][1]).all()
