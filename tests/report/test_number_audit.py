"""An audit of images with numbers to predict: odd and unlikely ones, and copies of other numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import iqr, median_abs_deviation
from sklearn.metrics import median_absolute_error
from tests.helpers.flawed import scene

from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.report import Audit, audit
from skipnets.report.number_audit import NumberCheck, check_numbers, outside_fences
from skipnets.report.predictions import UnseenPredictions, read_prediction_table
from skipnets.tables import as_text

TARGETS = ("age", "<i>size</i>")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """40 scenes. The age of one is a slip, that of another unlikely; of two pairs of copies one differs."""
    folder = tmp_path_factory.mktemp("numbers")
    generator = np.random.default_rng(0)
    rows, predictions = [], []
    for index in range(40):
        name = f"{index:02}.png"
        scene({38: 0, 39: 1}.get(index, index)).save(folder / name)
        age, size = generator.uniform(30, 60), generator.uniform(1, 2)
        predictions.append([name, age + generator.normal(0, 1), generator.uniform(1, 2)])
        age = {5: 10 * age, 7: age + 12}.get(index, age)
        rows.append([name, f"{age:.2f}", "" if index % 5 == 3 else f"{size:.3f}"])
    rows[38][1:], rows[39][1:] = rows[0][1:], [f"{float(rows[1][1]) + 10:.2f}", ""]
    for path, head, lines in (
        ("list.csv", ["path", *TARGETS], rows),
        ("p.csv", ["path", *(f"p:{name}" for name in TARGETS)], predictions),
    ):
        with (folder / path).open("w", newline="") as file:
            csv.writer(file).writerows([head, *lines])
    return audit(folder / "list.csv", folder / "p.csv", options=DataOptions(targets=TARGETS))


def test_fences_are_tukeys() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(size=200), [15.0, -20.0, np.nan]])
    known = values[:-1]
    low, high = np.percentile(known, (25, 75))
    away = outside_fences(values)
    expected = (known < low - 3 * iqr(known)) | (known > high + 3 * iqr(known))
    assert (away[:-1] > 0).tolist() == expected.tolist()
    assert away[200] == pytest.approx((15 - high) / iqr(known))
    assert away[202] == 0
    # Half of the grades are equal, so nothing is far from them.
    assert not outside_fences(np.array([1.0, 1, 1, 1, 9])).any()
    assert not outside_fences(np.full(3, np.nan)).any()


def test_a_slip_is_far_from_all_others_and_an_unlikely_number_from_its_prediction(checked: Audit) -> None:
    [odd] = checked.findings["odd-number"]
    assert odd.name == "05.png"
    assert odd.detail.startswith("age is ")
    unlikely = checked.findings["number-error"]
    assert {"05.png", "07.png"} <= {each.name for each in unlikely}
    assert unlikely[0].name == "05.png"  # the most serious first
    assert all(each.action == "marked" and each.detail.startswith("age is ") for each in unlikely)
    check = checked.label_check
    assert isinstance(check, NumberCheck)
    table = np.genfromtxt(Path(checked.data).with_name("p.csv"), delimiter=",", skip_header=1, usecols=(1, 2))
    size = checked.dataset.labels[:, 1]
    known = np.isfinite(size)
    assert check.errors["<i>size</i>"] == pytest.approx(
        (
            median_absolute_error(size[known], table[known, 1]),
            median_abs_deviation(size[known]),
        )
    )
    # Nothing is known of sizes, so none is doubted.
    assert check.labels_withheld == ("<i>size</i>",)
    assert "unlikely numbers of <i>size</i> are not listed" in " ".join(checked.notes)
    assert not {"label-error", "spelling", "small-class"} & set(checked.looked_for)


def test_copies_with_other_numbers_are_left_out(checked: Audit, tmp_path: Path) -> None:
    contradictions = {each.name: each for each in checked.findings["contradiction"]}
    assert set(contradictions) == {"01.png", "39.png"}
    assert {each.action for each in contradictions.values()} == {"left out"}
    assert "equal byte by byte; age " in contradictions["39.png"].detail
    checked.write_manifest(tmp_path / "clean.csv")
    clean = find_dataset(tmp_path / "clean.csv", fractions=None, options=DataOptions(targets=TARGETS))
    given = find_dataset(checked.data, fractions=None, options=DataOptions(targets=TARGETS))
    assert clean.classes == TARGETS
    names = [Path(name).name for name in clean.names]
    assert sorted(names) == sorted(set(given.names) - {"01.png", "39.png"})
    rows = [given.names.index(name) for name in names]
    np.testing.assert_array_equal(clean.labels, given.labels[rows])
    assert clean.groups is not None  # copies stay together
    table = tmp_path / "clean.csv"
    assert "number-error: age is " in table.read_text()


def test_the_audit_is_told_and_shown(checked: Audit, tmp_path: Path) -> None:
    told = checked.to_dict()
    assert (told["targets"], told["images"]) == (2, 40)
    assert told["label_check"]["median_absolute_error"].keys() == set(TARGETS)
    assert json.dumps(told)
    text = as_text(checked.tables())
    assert "median error of age " in text
    assert "Unlikely numbers" in text
    checked.write_page(tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert 'id="number-error"' in page
    assert "&lt;i&gt;size&lt;/i&gt;" in page
    assert "<i>size</i>" not in page
    assert "Class balance" not in page
    checked.write_findings(tmp_path / "findings.csv")
    assert "odd-number,05.png" in (tmp_path / "findings.csv").read_text()


def test_without_predictions_or_with_useless_ones_no_number_is_unlikely(
    checked: Audit, tmp_path: Path
) -> None:
    options = DataOptions(targets=TARGETS)
    plain = audit(checked.data, options=options)
    assert plain.label_check is None
    assert "unlikely numbers were not looked for" in " ".join(plain.notes)
    images = np.arange(40)
    useless = np.stack([-checked.dataset.labels[:, 0], np.zeros(40)], axis=1)
    predictions = UnseenPredictions(source="x", classes=TARGETS, images=images, probabilities=useless)
    findings, check = check_numbers(checked.dataset, predictions)
    assert (findings, check.withheld, check.labels_withheld) == ([], True, TARGETS)
    wrong = tmp_path / "p.csv"
    wrong.write_text(f"path,p:{TARGETS[0]}\n00.png,inf\n")
    with pytest.raises(UserError, match=r"the numbers of 00\.png must be finite"):
        read_prediction_table(wrong, checked.dataset)
