from __future__ import annotations

import pytest

from skipnets.training.schedule_plan import progress


def test_progress_is_even_between_changes_of_plan_and_complete_at_the_end() -> None:
    assert [progress(epoch, [(0, 4)]) for epoch in (0, 1, 3.5, 4, 5)] == [0, 0.25, 0.875, 1, 1]
    plan = [(0, 10), (5, 7), (6, 10)]
    assert progress(5, plan) == 0.5
    assert progress(6, plan) == 0.75
    assert progress(8, plan) == pytest.approx(0.875)
    assert progress(10, plan) == 1
    assert progress(3, [(0, 8), (2, 2)]) == 1
