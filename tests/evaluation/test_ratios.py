"""Ratios and means that may be undefined, against Python's own division."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skipnets.evaluation.ratios import defined_mean, ratio

NAN = float("nan")


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_ratio_is_undefined_where_the_whole_is_empty(kind: type) -> None:
    part, whole = np.array([[1, 0], [0, 3]], kind), np.array([[4, 0], [2, 2]], kind)
    np.testing.assert_array_equal(ratio(part, whole), [[0.25, NAN], [0, 1.5]])


def test_a_mean_is_of_what_is_defined() -> None:
    assert defined_mean(np.array([[1, NAN], [np.inf, 4]])) == 2.5
    assert math.isnan(defined_mean(np.array([NAN, NAN])))
    assert math.isnan(defined_mean(np.array([])))
