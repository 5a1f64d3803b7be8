"""The evaluation of a regression: what is written, read and printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import mean_absolute_error
from tests.helpers.disks import TARGETS

from skipnets.data.options import DataOptions
from skipnets.errors import UserError
from skipnets.evaluation import RegressionEvaluation, evaluate
from skipnets.evaluation.display import metric_tables
from skipnets.evaluation.regression_evaluation import metric_text, numbers_by_name
from skipnets.tables import as_text
from skipnets.training import Run


@pytest.fixture(scope="module")
def evaluation(number_run: Run) -> RegressionEvaluation:
    found = evaluate(number_run, split="test")
    assert isinstance(found, RegressionEvaluation)
    return found


def test_a_run_is_evaluated_by_group_in_the_targets_units(
    number_run: Run, evaluation: RegressionEvaluation
) -> None:
    rows = dict(line.split(",", 1) for line in Path(number_run.config.data).read_text().splitlines())
    for name, numbers in zip(evaluation.names, evaluation.numbers, strict=True):
        assert [float(cell) for cell in rows[name].split(",")[1:3]] == numbers.tolist()
    metrics = evaluation.to_dict()
    assert (metrics["task"], metrics["images"], metrics["groups"]) == ("regression", 18, 9)
    for index, row in enumerate(metrics["targets"]):
        assert row["name"] == TARGETS[index]
        assert row["mae"] == pytest.approx(
            mean_absolute_error(evaluation.numbers[:, index], evaluation.predicted[:, index])
        )
        low, high = row["intervals"]["mae"]
        assert low < row["mae"] < high
        assert number_run.scores["targets"][index]["rmse"] == pytest.approx(row["rmse"], rel=1e-5)
    assert evaluation.warnings == []


def test_what_is_saved_is_what_was_measured(evaluation: RegressionEvaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    metrics = json.loads((tmp_path / "evaluation.json").read_text())
    assert metrics == evaluation.to_dict()
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert list(table) == ["path", "group", *(f"{kind}:{name}" for kind in "yp" for name in TARGETS)]
    np.testing.assert_array_equal(table[f"p:{TARGETS[1]}"], evaluation.predicted[:, 1])
    assert (tmp_path / "scatter.png").stat().st_size > 5000
    printed = as_text(metric_tables(metrics))
    assert printed == str(evaluation)
    assert "bootstrap over 9 groups of images" in printed
    row = metrics["targets"][0]
    low, high = row["intervals"]["r2"]
    words = " ".join(printed.split())
    assert f"R² {row['r2']:.3f} {low:.3f} to {high:.3f} bias" in words
    table = printed[printed.index("target ") :]
    assert max(map(len, table.splitlines())) <= 80


def test_other_data_are_read_as_the_models_targets(number_run: Run, tmp_path: Path) -> None:
    folder = Path(number_run.config.data).parent
    other = tmp_path / "others.csv"
    # The columns stand in another order, beside one more.
    other.write_text(
        f"path,more,{TARGETS[1]},{TARGETS[0]}\n{folder}/000.png,1,-1000,2\n{folder}/001.png,2,-1000,3\n"
    )
    found = evaluate(number_run, other)
    assert isinstance(found, RegressionEvaluation)
    assert found.numbers.tolist() == [[2, -1000], [3, -1000]]
    assert found.known is not None
    assert sum(found.known.values()) == 2  # the images of the run, known by their content
    assert any("R² of <b>level</b> is undefined" in each for each in found.warnings)
    assert found.to_dict()["targets"][1]["r2"] is None
    with pytest.raises(UserError, match="targets='age': "):
        evaluate(number_run, other, options=DataOptions(targets=("age",)))
    with pytest.raises(UserError, match="has no numbers for radius mm"):
        evaluate(number_run, other, options=DataOptions(targets=("more",)))


def test_numbers_stand_in_the_models_order() -> None:
    numbers = np.array([[1.0, 2.0, 3.0]])
    assert numbers_by_name(numbers, ["a", "b", "c"], ("c", "a"), "data").tolist() == [[3, 1]]


def test_metrics_as_text() -> None:
    assert metric_text("mae", 1234.5678) == "1235"
    assert metric_text("r2", 0.98765) == "0.988"
    assert metric_text("exact", 0.5) == "50.0%"
    assert metric_text("r2", None) == metric_text("r2", float("nan")) == "–"
