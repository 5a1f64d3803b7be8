"""The labels of a manifest's rows: one class, or several in one column or in many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.manifests import FOUR, Case, check_manifest, opened, table, write_manifest

from skipnets.errors import UserError

NAN = float("nan")

CASES = {
    "blanks around labels": Case(
        "m.csv", table("path,label").replace("dog\n", "dog \n", 1), FOUR, ("blanks around class names",)
    ),
    "blanks of no width around labels": Case(
        "m.csv",
        table("path,label").replace("dog\n", "dog\u200b\n", 1).replace("cat", "\ufeffcat\u00a0", 1),
        FOUR,
        ("blanks around class names",),
    ),
    "one label in two cases": Case(
        "m.csv",
        table("path,label").replace("dog\n", "Dog\n", 1),
        "test: Dog 1, cat 2, dog 1",
        ('classes "Dog", "dog" differ only in spelling',),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_label(tmp_path, case):
    check_manifest(tmp_path, case)


def test_columns_of_marks_are_labels_unknown_where_they_are_empty_or_uncertain(tmp_path: Path) -> None:
    rows = [["a.png", "1", "0.0"], ["b.png", "", "-1.0"], ["c.png", "False", "1.0"]]
    path = write_manifest(tmp_path, ["path", "Mass", "Edema"], rows)
    dataset = opened(path)
    assert dataset.multi_label
    assert dataset.classes == ("Edema", "Mass")
    np.testing.assert_array_equal(dataset.labels, [[0, 1], [NAN, NAN], [1, 0]])
    assert dataset.label_names == ["Mass", "?Edema|?Mass", "Edema"]
    assert dataset.listing.columns == {"path": "path", "Mass": "label", "Edema": "label"}
    for policy, value in {"positive": 1, "negative": 0}.items():
        assert opened(path, uncertain=policy).labels[1, 0] == value


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_a_column_lists_labels(tmp_path: Path, separator: str) -> None:
    rows = [["a.png", f"cat{separator} dog"], ["b.png", ""], ["c.png", "dog"]]
    dataset = opened(write_manifest(tmp_path, ["path", "label"], rows), task="multi-label")
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 0], [0, 1]])


def test_a_column_called_labels_with_bars_is_read_so_by_itself(tmp_path: Path) -> None:
    rows = [["a.png", "cat|dog"], ["b.png", "dog"]]
    assert opened(write_manifest(tmp_path, ["path", "Finding Labels"], rows)).multi_label
    one = opened(write_manifest(tmp_path, ["path", "label"], rows))
    assert not one.multi_label
    assert any("--task multi-label" in warning for warning in one.listing.warnings)
    assert not opened(tmp_path / "list.csv", task="single-label").multi_label


def test_published_tables_of_chest_images_are_read_by_themselves(tmp_path: Path) -> None:
    chexpert = ["Path", "Sex", "Age", "Frontal/Lateral", "No Finding", "Edema", "Pleural Effusion"]
    rows = [
        ["a.png", "Male", "68", "Frontal", "", "1.0", "-1.0"],
        ["b.png", "Female", "0", "Lateral", "1.0", "0.0", "0.0"],
    ]
    dataset = opened(write_manifest(tmp_path, chexpert, rows))
    assert dataset.classes == ("Edema", "No Finding", "Pleural Effusion")
    np.testing.assert_array_equal(dataset.labels, [[1, NAN, NAN], [0, 1, 0]])

    nih = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "OriginalImage[Width"]
    rows = [
        ["a.png", "Edema|Mass", "0", "1", "2"],
        ["b.png", "Mass", "1", "1", "3"],
        ["c.png", "Edema", "0", "2", "3"],
    ]
    dataset = opened(write_manifest(tmp_path, nih, rows))
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 1], [1, 0]])
    assert any("--group-column Patient ID" in warning for warning in dataset.listing.warnings)

    padchest = ["ImageID", "PatientID", "Labels"]
    rows = [["a.png", "1", "['normal', 'scoliosis']"], ["b.png", "2", "[]"]]
    dataset = opened(write_manifest(tmp_path, padchest, rows))
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 0]])


def test_missing_marks_are_written_in_several_ways(tmp_path: Path) -> None:
    rows = [["a.png", "1.00", "NA"], ["b.png", "NaN", "0"], ["c.png", "0", "1"], ["d.png", "-1.0", "n/a"]]
    dataset = opened(write_manifest(tmp_path, ["path", "A", "B"], rows))
    np.testing.assert_array_equal(dataset.labels, [[1, NAN], [NAN, 0], [0, 1], [NAN, NAN]])
    assert any("1 uncertain mark" in note for note in dataset.listing.notes)


def test_what_is_said_where_uncertain_marks_cannot_be(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, ["path", "labels"], [["a.png", "cat|dog"], ["b.png", "dog"]])
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "x.png")
    (tmp_path / "dog").mkdir()
    Image.new("L", (4, 4), 9).save(tmp_path / "dog" / "y.png")
    for data in (path, tmp_path):
        warnings = opened(data, uncertain="positive", task="multi-label").listing.warnings
        assert any(each.startswith("uncertain=positive: has no effect") for each in warnings)


def test_names_in_lists_of_a_table_are_not_taken_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    path = tmp_path / "list.jsonl"
    lines = [{"path": "a.png", "labels": ["tabby, cat"]}, {"path": "b.png", "labels": ["dog", "tabby, cat"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert opened(path).classes == ("dog", "tabby, cat")
    lines[1]["labels"] = ["dog"]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert opened(path, task="single-label").classes == ("dog", "tabby, cat")


def test_another_separator_between_labels_is_doubted(tmp_path: Path) -> None:
    rows = [["a.png", "cat|dog"], ["b.png", "dog;cow"], ["c.png", "a, b"]]
    [warning] = opened(write_manifest(tmp_path, ["path", "labels"], rows)).listing.warnings
    assert warning.startswith("labels that look like several: 'dog;cow'; names are separated by \"|\" here")


def test_an_empty_cell_of_several_labels_says_which_option_allows_it(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, ["path", "labels"], [["a.png", "cat;dog"], ["b.png", ""]])
    with pytest.raises(UserError, match="every image needs one, unless it has any number: --task multi-lab"):
        opened(path)


def test_a_column_that_lists_one_label_only_is_doubted(tmp_path: Path) -> None:
    rows = [["a.png", "haze primary"], ["b.png", "clear"]]
    dataset = opened(write_manifest(tmp_path, ["path", "label"], rows), task="multi-label")
    assert any("lists more than one label" in warning for warning in dataset.listing.warnings)
