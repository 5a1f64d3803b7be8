"""Telling the task of an evaluation, and what is wrong with its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.report.reading import evaluated_task, reading
from skipnets.training import Run


def test_the_task_is_that_of_the_evaluation(number_run: Run, label_run: Run, tmp_path: Path) -> None:
    assert evaluated_task(number_run.folder) == "regression"
    assert evaluated_task(label_run.folder) == "multi-label"
    assert evaluated_task(tmp_path) is None
    (tmp_path / "evaluation.json").write_text("[]")
    assert evaluated_task(tmp_path) is None
    (tmp_path / "evaluation.json").write_text("{}")
    assert evaluated_task(tmp_path) == "single-label"


def test_what_is_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"is missing or damaged, .* \('folds'\); skipnets evaluate"),
        reading(tmp_path),
    ):
        raise KeyError("folds")
