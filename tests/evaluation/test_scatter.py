"""Plots of predictions and residuals: what they show, and how many dots."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from skipnets.evaluation.scatter import MOST_POINTS, draw_scatter, plot_residuals, plot_scatter


def dots(axes: object) -> np.ndarray:
    return np.asarray(axes.collections[0].get_offsets())  # type: ignore[attr-defined]


def test_dots_stand_at_their_numbers_and_residuals() -> None:
    numbers, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    left, right = Figure().subplots(1, 2)
    plot_scatter(left, numbers, predicted, color="b", line="k")
    plot_residuals(right, numbers, predicted, color="b", line="k")
    np.testing.assert_allclose(dots(left), [[1, 1.5], [2, 2], [4, 3]])
    np.testing.assert_allclose(dots(right), [[1.5, 0.5], [2, 0], [3, -1]])
    assert left.get_xlim() == left.get_ylim()
    low, high = right.get_ylim()
    assert low == pytest.approx(-high)


def test_equal_grades_are_one_larger_dot() -> None:
    axes = Figure().subplots()
    plot_scatter(axes, np.array([1.0, 1.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0, 2.0]), color="b", line="k")
    assert len(dots(axes)) == 2
    sizes = axes.collections[0].get_sizes()
    assert sizes[0] == pytest.approx(3 * sizes[1])


@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e12])
def test_dots_stay_apart_in_every_unit(unit: float) -> None:
    axes = Figure().subplots()
    numbers = unit * np.array([1.0, 2.0, 3.0, 0.1 + 0.2, 0.3])
    plot_scatter(axes, numbers, 2 * numbers, color="b", line="k")
    np.testing.assert_allclose(dots(axes), np.outer([0.3, 1, 2, 3], [unit, 2 * unit]), rtol=1e-6)


def test_of_many_some_are_drawn() -> None:
    axes = Figure().subplots()
    values = np.arange(2.0 * MOST_POINTS)
    plot_scatter(axes, values, values, color="b", line="k")
    assert len(dots(axes)) == MOST_POINTS
    assert dots(axes)[:, 0].mean() == pytest.approx(values.mean(), rel=0.05)


def test_every_target_has_a_row() -> None:
    numbers = np.array([[1.0, 10.0], [2.0, 10.0]])
    figure = draw_scatter(numbers, numbers, ("$age", "size"), title="data")
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["$age", "size"]
