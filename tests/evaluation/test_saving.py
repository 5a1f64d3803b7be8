"""What evaluations of every task are written as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from skipnets.evaluation.saving import SavedEvaluation, or_none


class Saved(SavedEvaluation):
    def __init__(self, loss: float) -> None:
        self.loss = loss

    def to_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def prediction_columns(self) -> dict[str, Any]:
        return {"path": ["a.png", "b.png"], "p:cat": [0.25, 0.5]}


def test_metrics_and_predictions_are_written(tmp_path: Path) -> None:
    Saved(0.5).save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == {"loss": 0.5}
    table = pyarrow.parquet.read_table(tmp_path / "new" / "predictions.parquet")
    assert table.to_pydict() == {"path": ["a.png", "b.png"], "p:cat": [0.25, 0.5]}
    Saved(0.5).save(tmp_path, table="csv")
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == "a.png,0.25"


def test_what_json_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Saved(float("nan")).save(tmp_path)
    assert not (tmp_path / "evaluation.json").exists()
    assert or_none(float("nan")) is None
    assert or_none(0.25) == 0.25
