"""Comparing runs that predict numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from tests.helpers.disks import TARGETS

from skipnets.errors import UserError
from skipnets.evaluation import RegressionEvaluation, evaluate
from skipnets.report import compare
from skipnets.report.pairing import holm
from skipnets.report.regression_comparison import NumberComparison
from skipnets.tables import as_text
from skipnets.training import Run

RESAMPLES = 200


@pytest.fixture(scope="module")
def pair(number_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The evaluation of a run, and one whose radius is noisy and whose rows are in another order."""
    folder = tmp_path_factory.mktemp("pair")
    evaluation = evaluate(number_run, split="test")
    assert isinstance(evaluation, RegressionEvaluation)
    for name in ("first", "second"):
        evaluation.save(folder / name)
        path = folder / name / "predictions.parquet"
        table = pyarrow.parquet.read_table(path).to_pydict()
        table[f"y:{TARGETS[1]}"][0] = None
        if name == "second":
            noise = np.random.default_rng(0).normal(1, 1, len(table["path"]))
            table[f"p:{TARGETS[0]}"] = (np.array(table[f"p:{TARGETS[0]}"]) + noise).tolist()
            table = {column: values[::-1] for column, values in table.items()}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    return folder / "first", folder / "second"


def test_errors_are_compared_on_the_same_draws_of_groups(pair: tuple[Path, Path]) -> None:
    comparison = compare(pair, resamples=RESAMPLES)
    assert isinstance(comparison, NumberComparison)
    first, second = (pyarrow.parquet.read_table(path / "predictions.parquet").to_pydict() for path in pair)
    place = [second["path"].index(name) for name in first["path"]]
    names = sorted(set(first["group"]))
    members = {name: [i for i, group in enumerate(first["group"]) if group == name] for name in names}
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    rows = [np.concatenate([members[names[unit]] for unit in units]) for units in drawn]
    expected = []
    for each, target in zip(comparison.differences, TARGETS, strict=True):
        truth = np.array(first[f"y:{target}"], dtype=float)
        one = np.abs(np.array(first[f"p:{target}"]) - truth)
        other = np.abs(np.array(second[f"p:{target}"])[place] - truth)
        assert (each.target, each.first, each.mae) == (
            target,
            pytest.approx(np.nanmean(one)),
            pytest.approx(np.nanmean(other)),
        )
        spread = np.array([np.nanmean(other[of]) - np.nanmean(one[of]) for of in rows])
        assert each.interval == pytest.approx(np.percentile(spread, (2.5, 97.5)), abs=1e-9)
        expected.append(min(1.0, 2 * (min((spread <= 0).sum(), (spread >= 0).sum()) + 1) / (RESAMPLES + 1)))
    assert [each.p for each in comparison.differences] == pytest.approx(holm(expected))
    assert [each.verdict for each in comparison.differences] == ["worse", "within noise"]
    text = as_text(comparison.tables())
    assert "MAE of second against first" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "images of one group are drawn together" in text
    assert comparison.to_dict()["task"] == "regression"


def test_runs_whose_true_numbers_differ_are_not_compared(number_run: Run, pair: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"cannot be compared: <b>level</b> of \S+ is not the same in both"):
        compare([number_run, pair[0]])


def test_other_tasks_and_images_are_refused(pair: tuple[Path, Path], label_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.json or .* is missing or damaged"):
        compare([pair[0], tmp_path])
    (tmp_path / "evaluation.json").write_text('{"task": "single-label"}')
    with pytest.raises(UserError, match=r"is of a regression and .* is not"):
        compare([pair[0], tmp_path])
    with pytest.raises(UserError, match=r"is of a multi-label classifier and .* is not"):
        compare([pair[0], label_run.folder])
    (tmp_path / "evaluation.json").write_bytes((pair[0] / "evaluation.json").read_bytes())
    table = pyarrow.parquet.read_table(pair[0] / "predictions.parquet")
    pyarrow.parquet.write_table(table.slice(0, 5), tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match="their test images differ"):
        compare([pair[0], tmp_path])
