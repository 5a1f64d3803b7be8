"""Results of folds that predict numbers, joined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import mean_absolute_error

from skipnets.evaluation.display import headline, metric_tables
from skipnets.evaluation.regression import measure_numbers
from skipnets.evaluation.regression_evaluation import RegressionEvaluation
from skipnets.evaluation.regression_out_of_fold import NumberFoldResult, numbers_out_of_fold
from skipnets.tables import as_text

TARGETS = ("age", "size")


def fold(folder: Path, number: int) -> NumberFoldResult:
    """A fold's model, evaluated on 20 images, whose files were written and read again."""
    generator = np.random.default_rng(number)
    numbers = generator.normal(50, 10, (20, 2))
    predicted = numbers + generator.normal(0, number, (20, 2))
    numbers[::4, 1] = np.nan
    RegressionEvaluation(
        classifier=f"fold-{number}",
        data="data",
        split="test",
        targets=TARGETS,
        metrics=measure_numbers(predicted, numbers, resamples=20),
        names=[f"{index:02}" for index in range(number - 1, 40, 2)],
        numbers=numbers,
        predicted=predicted,
        ordinal=False,
        groups=None,
        failures={f"x{number}": "cut short"},
        known={"train": 0, "val": 0, "test": 20},
    ).save(folder / str(number))
    return NumberFoldResult.read(folder / str(number), number=number, best_epoch=number)


def test_folds_are_joined_by_name_and_their_spread_is_told(tmp_path: Path) -> None:
    folds = [fold(tmp_path, 1), fold(tmp_path, 2)]
    joined = numbers_out_of_fold(folds, classifier="run", data="data", targets=TARGETS, groups=None)
    joined.save(tmp_path / "all")
    table = pyarrow.parquet.read_table(tmp_path / "all" / "predictions.parquet").to_pydict()
    assert list(table) == ["path", "fold", "y:age", "y:size", "p:age", "p:size"]
    assert table["path"] == [f"{index:02}" for index in range(40)]
    assert table["fold"] == [1, 2] * 20
    assert table["y:size"][0] is None
    told = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    assert told["targets"][0]["mae"] == pytest.approx(mean_absolute_error(table["y:age"], table["p:age"]))
    assert [row["images"] for row in told["targets"]] == [40, 30]
    errors = [np.abs(each.numbers - each.predicted)[:, 0].mean() for each in folds]
    assert [row["targets"][0]["mae"] for row in told["folds"]] == pytest.approx(errors)
    assert told["between_folds"][0]["mae"] == {
        "mean": pytest.approx(np.mean(errors)),
        "std": pytest.approx(np.std(errors, ddof=1)),
    }
    assert told["failures"] == {"x1": "cut short", "x2": "cut short"}
    text = as_text(metric_tables(told))
    assert "age: fold" in text
    assert "the ensemble of them has seen all of these images" in " ".join(text.split())
    assert headline(told).startswith("MAE of age ")


def test_groups_are_drawn_as_wholes(tmp_path: Path) -> None:
    groups = {f"{index:02}": f"p{index // 4}" for index in range(40)}
    joined = numbers_out_of_fold(
        [fold(tmp_path, 1), fold(tmp_path, 2)], classifier="run", data="data", targets=TARGETS, groups=groups
    )
    assert joined.metrics.groups == 10
