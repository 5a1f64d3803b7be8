"""Reading the predictions of a run that predicts numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.disks import TARGETS

from skipnets.errors import UserError
from skipnets.evaluation import RegressionEvaluation, evaluate
from skipnets.report.regression_results import read_regression_results
from skipnets.training import Run


def test_results_are_those_of_the_evaluation(number_run: Run, tmp_path: Path) -> None:
    results = read_regression_results(number_run.folder)
    evaluation = evaluate(number_run, split="test")
    assert isinstance(evaluation, RegressionEvaluation)
    assert (results.classes, results.names, results.ordinal) == (TARGETS, evaluation.names, False)
    np.testing.assert_array_equal(results.numbers, evaluation.numbers)
    np.testing.assert_allclose(results.predicted, evaluation.predicted, rtol=1e-5)
    assert results.groups is not None


def test_damaged_results_are_told_in_one_line(number_run: Run, tmp_path: Path) -> None:
    shutil.copy(number_run.folder / "evaluation.json", tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="is missing or damaged, or they do not match"):
        read_regression_results(tmp_path)
