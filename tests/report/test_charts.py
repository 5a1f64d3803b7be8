"""The report's charts."""

from __future__ import annotations

import numpy as np

from skipnets.evaluation.reliability import binary_reliability, reliability
from skipnets.report.charts import draw_reliability, one_class_curves


def test_curves_keep_their_ends_when_thinned() -> None:
    rng = np.random.default_rng(0)
    is_class = rng.random(5000) < 0.3
    curves = one_class_curves(rng.random(5000) + 0.3 * is_class, is_class)
    assert curves is not None
    assert len(curves.recall) == 400
    assert (curves.recall[0], curves.recall[-1]) == (1, 0)
    assert (curves.false_positives[0], curves.false_positives[-1]) == (0, 1)
    assert one_class_curves(np.ones(3), np.ones(3, bool)) is None


def test_a_diagram_of_one_prediction_can_be_drawn() -> None:
    assert draw_reliability(reliability(np.array([[0.7, 0.3]]), np.array([0])), "one").startswith("<svg")
    nothing = binary_reliability(np.zeros(0), np.zeros(0, np.bool_))
    assert np.isnan(nothing.ece)
    assert draw_reliability(nothing, "nothing").startswith("<svg")
