"""Comparing runs with several labels an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, evaluate
from skipnets.evaluation.delong import delong_test
from skipnets.report import compare
from skipnets.report.label_comparison import LabelComparison
from skipnets.report.pairing import holm
from skipnets.tables import as_text
from skipnets.training import Run


@pytest.fixture(scope="module")
def pair(label_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The evaluation of a run, and one whose probabilities are noisy and whose rows are in another order."""
    folder = tmp_path_factory.mktemp("pair")
    evaluation = evaluate(label_run, split="test")
    assert isinstance(evaluation, MultiLabelEvaluation)
    for name in ("first", "second"):
        evaluation.save(folder / name)
    path = folder / "second" / "predictions.parquet"
    table = pyarrow.parquet.read_table(path).to_pydict()
    generator = np.random.default_rng(0)
    order = generator.permutation(len(table["path"]))
    for name, values in table.items():
        if name.startswith("p:"):
            values = np.clip(np.array(values) + generator.normal(size=len(values)), 0.01, 0.99).tolist()
        table[name] = [values[index] for index in order]
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return folder / "first", folder / "second"


def test_each_label_is_compared_by_delongs_test_on_the_same_images(pair: tuple[Path, Path]) -> None:
    comparison = compare(pair)
    assert isinstance(comparison, LabelComparison)
    first, second = (pyarrow.parquet.read_table(path / "predictions.parquet").to_pydict() for path in pair)
    place = [second["path"].index(name) for name in first["path"]]
    expected = []
    for each in comparison.differences:
        marks = first[f"y:{each.label}"]
        known = [index for index, mark in enumerate(marks) if mark is not None]
        one = np.array([first[f"p:{each.label}"][index] for index in known])
        other = np.array([second[f"p:{each.label}"][place[index]] for index in known])
        groups = np.unique([first["group"][index] for index in known], return_inverse=True)[1]
        tested = delong_test(one, other, np.array([marks[index] == 1 for index in known]), groups)
        assert (each.first, each.auroc) == pytest.approx((tested.first, tested.second))
        assert each.interval == pytest.approx(tested.interval)
        expected.append(tested.p)
    assert [each.p for each in comparison.differences] == pytest.approx(holm(expected))
    text = as_text(comparison.tables())
    assert "AUROC of second against first" in text
    assert max(map(len, text.splitlines())) <= 80
    one = comparison.differences[0]
    assert [f"{one.first:.4f}", f"{one.auroc:.4f}", f"{one.auroc - one.first:+.4f}"] in [
        line.split()[len(one.label.split()) :][:3] for line in text.splitlines()
    ]
    assert "images of one group are taken together" in text


def test_a_run_does_not_differ_from_itself(label_run: Run, pair: tuple[Path, Path]) -> None:
    comparison = compare([label_run, pair[0]])
    assert isinstance(comparison, LabelComparison)
    assert {each.verdict for each in comparison.differences} == {"within noise"}


def test_other_images_and_other_tasks_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = pair[0] / "evaluation.json"
    table = pyarrow.parquet.read_table(pair[0] / "predictions.parquet")
    (tmp_path / "evaluation.json").write_bytes(evaluation.read_bytes())
    pyarrow.parquet.write_table(table.slice(0, 5), tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match="their test images differ"):
        compare([pair[0], tmp_path])
    (tmp_path / "other").mkdir()
    for runs in ((pair[0], tmp_path / "other"), (tmp_path / "other", pair[0])):
        with pytest.raises(UserError, match=r"other(: .* is missing or damaged| has no evaluation\.json)"):
            compare(runs)
    (tmp_path / "other" / "evaluation.json").write_text('{"task": "single-label"}')
    with pytest.raises(UserError, match=r"is of a multi-label classifier and .* is not"):
        compare([pair[0], tmp_path / "other"])
