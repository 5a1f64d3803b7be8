"""Reliability bins: counted by hand, within their edges, and the error that the metrics give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipnets.evaluation.metrics import measure
from skipnets.evaluation.reliability import confidence_bin, reliability
from skipnets.probabilities import softmax


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(2, 9), st.floats(0.1, 20))
def test_reliability_bins_give_the_error_that_evaluation_gives(
    seed: int, count: int, classes: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = scale * rng.normal(size=(count, classes)).astype(np.float32)
    bins = reliability(softmax(logits), labels)
    assert bins.counts.sum() == count
    assert bins.ece == pytest.approx(measure(logits, labels).ece, abs=1e-12)
    full = bins.counts > 0
    assert ((bins.edges[:-1] <= bins.confidence) & (bins.confidence <= bins.edges[1:]))[full].all()
    assert ((bins.intervals[:, 0] <= bins.accuracy) & (bins.accuracy <= bins.intervals[:, 1]))[full].all()
    assert np.isnan(bins.accuracy[~full]).all()


def test_reliability_of_answers_counted_by_hand() -> None:
    probabilities = np.array([[1.0, 0.0], [0.95, 0.05], [0.3, 0.7], [0.5, 0.5]])
    bins = reliability(probabilities, np.array([0, 1, 1, 0]), bins=2)
    assert bins.counts.tolist() == [1, 3]  # bins are closed above
    assert bins.accuracy.tolist() == [1, 2 / 3]
    assert bins.confidence == pytest.approx([0.5, (1 + 0.95 + 0.7) / 3])
    assert bins.ece == pytest.approx((0.5 + abs(1 + 0.95 + 0.7 - 2)) / 4)


def test_a_confidence_at_an_edge_is_in_the_bin_below() -> None:
    assert confidence_bin(np.array([0.0, 0.25, 0.2500001, 0.5, 1.0]), 4).tolist() == [0, 0, 1, 1, 3]
