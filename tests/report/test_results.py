"""Results read back from a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from tests.helpers.results import make_predictions, write_results

from skipnets.errors import UserError
from skipnets.probabilities import softmax
from skipnets.report.results import read_results


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_results_are_what_was_evaluated(tmp_path: Path, temperature: float) -> None:
    logits, labels = make_predictions(0, 40, 3.0)
    results = read_results(write_results(tmp_path / "a", logits, labels, temperature=temperature))
    assert results.temperature == temperature
    np.testing.assert_allclose(results.probabilities, softmax(logits, temperature), atol=1e-6)
    np.testing.assert_allclose(softmax(results.logits), softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(results.labels, labels)
    np.testing.assert_array_equal(results.predicted, logits.argmax(1))


def test_probabilities_too_small_for_the_table_stay_finite(tmp_path: Path) -> None:
    results = read_results(
        write_results(tmp_path / "a", np.array([[200.0, 0, -200], [0, 1, 2]]), np.array([0, 1]))
    )
    assert np.isfinite(results.logits).all()


def test_folders_without_predictions_say_what_to_do(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 30, 1.0)
    folder = write_results(tmp_path / "a", logits, labels)
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(
        UserError,
        match=r"is missing or damaged, or they do not match .* skipnets evaluate .* writes them again",
    ):
        read_results(folder)
    write_results(folder, logits, labels)
    table = pyarrow.parquet.read_table(folder / "predictions.parquet")
    pyarrow.parquet.write_table(table.drop_columns(["p:b"]), folder / "predictions.parquet")
    with pytest.raises(UserError, match="they do not match"):
        read_results(folder)
    (folder / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"has no predictions\.parquet: .*--resume"):
        read_results(folder)
