"""Which images a report shows."""

from __future__ import annotations

import numpy as np
from tests.helpers.results import results_of

from skipnets.report.gallery import (
    ALL_CELLS,
    RIGHT_CELL,
    WRONG_CELL,
    confusion_cells,
    least_confident_correct,
)
from skipnets.report.gallery import most_confident_mistakes as mistakes


def test_the_number_of_images_is_bounded() -> None:
    results = results_of(20_000, 20)
    cells = confusion_cells(results)
    assert sum(cell.count for cell in cells) == 20_000
    assert sum(len(cell.shown) for cell in cells) == ALL_CELLS
    assert all(
        len(cell.shown) <= (RIGHT_CELL if cell.true == cell.predicted else WRONG_CELL) for cell in cells
    )
    wrong = [cell for cell in cells if cell.true != cell.predicted]
    assert cells[: len(wrong)] == wrong
    assert [cell.count for cell in wrong] == sorted((cell.count for cell in wrong), reverse=True)


def test_images_are_the_ones_they_are_said_to_be() -> None:
    results = results_of(500, 3)
    confidence = results.probabilities.max(1)
    right = results.predicted == results.labels
    assert set(mistakes(results)) == set(np.argsort(np.where(right, -1, confidence))[::-1][:12])
    assert set(least_confident_correct(results)) == set(np.argsort(np.where(right, confidence, 2))[:12])
    for cell in confusion_cells(results):
        inside = (results.labels == cell.true) & (results.predicted == cell.predicted)
        assert cell.count == inside.sum()
        ordered = sorted(confidence[inside], reverse=cell.true != cell.predicted)
        assert [confidence[index] for index in cell.shown] == ordered[: len(cell.shown)]
