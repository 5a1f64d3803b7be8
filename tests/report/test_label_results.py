"""Reading the predictions of a run with several labels an image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from skipnets.classifier import describe
from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, evaluate
from skipnets.report.label_results import read_label_results
from skipnets.training import Run


def test_results_are_those_of_the_evaluation(label_run: Run, tmp_path: Path) -> None:
    results = read_label_results(label_run.folder)
    evaluation = evaluate(label_run, split="test")
    assert isinstance(evaluation, MultiLabelEvaluation)
    assert results.names == evaluation.names
    np.testing.assert_array_equal(results.labels, evaluation.labels)
    np.testing.assert_allclose(results.probabilities, evaluation.probabilities, atol=1e-6)
    assert results.thresholds == pytest.approx(describe(label_run.model)["thresholds"])


def test_damaged_results_are_told_in_one_line(label_run: Run, tmp_path: Path) -> None:
    for name in ("evaluation.json", "predictions.parquet"):
        shutil.copy(label_run.folder / name, tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="is missing or damaged, or they do not match"):
        read_label_results(tmp_path)
