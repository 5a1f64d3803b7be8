"""Columns: recognized where there is no doubt, otherwise asked for, and all are accounted for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.helpers.folders import image_bytes, plant
from tests.helpers.manifests import (
    FOUR,
    ROWS,
    Case,
    check_manifest,
    opened,
    table,
    write_groups,
    write_manifest,
)

from skipnets.data.manifest_columns import _GROUP_WORDS
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey
from skipnets.errors import UserError

CASES = {
    "path,label": Case("m.csv", table("path,label"), FOUR),
    "other names": Case("m.csv", table("file_name,Class"), FOUR),
    "no header, splits": Case(
        "m.csv",
        table("", "train", "test", "train", "Testing"),
        "train: cat 1, dog 1; test: cat 1, dog 1",
        ("no header",),
    ),
    "no header, numbers": Case(
        "m.csv",
        table("", "1", "2", "3", "4"),
        FOUR,
        ("columns that are not used: 3",),
        {"path_column": "1", "label_column": "2"},
    ),
    "named columns": Case(
        "m.csv",
        table("a,b,c", "train", "train", "test", "test"),
        "train: cat 2; test: dog 2",
        ("not in train", "in train but not in test"),
        {"path_column": "a", "label_column": "b", "split_column": "c"},
    ),
    "one other column": Case("m.csv", table("path,species"), FOUR),
    "index column": Case(
        "m.csv",
        ",path,label\n" + "".join(f"{i},{name},{label}\n" for i, (name, label) in enumerate(ROWS)),
        FOUR,
    ),
    "unused columns": Case(
        "m.csv", table("path,label,age", "1", "2", "3", "4"), FOUR, ("columns that are not used: age",)
    ),
    "unused patients": Case(
        "m.csv",
        table("path,label,PatientID", "7", "7", "8", "8"),
        FOUR,
        ("images of one PatientID may .*--group-column PatientID", "not used: PatientID"),
    ),
    "used patients": Case(
        "m.csv", table("path,label,patient", "7", "7", "8", "8"), FOUR, (), {"group_column": "patient"}
    ),
    "two columns of labels": Case(
        "m.csv",
        table("path,target,category", "0", "0", "1", "1"),
        "error: target and category may both hold the labels; choose with --label-column",
    ),
    "no column of labels": Case(
        "m.csv",
        table("path,x,y", "0", "0", "1", "1"),
        "error: which column holds the labels. Its columns are path, x, y; name it with --label-column",
    ),
    "a column of labels but for one cell": Case(
        "m.csv",
        table("path,x,y", "0", "1", "5", "1"),
        "error: which column holds the labels. .* with --label-column .column y is not used as a label: "
        "line 4 of m.csv holds '5'",
    ),
    "no column of files": Case("m.csv", "a,b\nx,y\n", "error: which column holds the image files"),
    "a column that is not there": Case(
        "m.csv",
        table("path,label"),
        r"error: group_column='lable': .* has the columns path, label; did you mean label",
        (),
        {"group_column": "lable"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_columns(tmp_path, case):
    check_manifest(tmp_path, case)


# What data sets name those whose images must not be divided among splits.
@pytest.mark.parametrize(
    "column", sorted({"patient", "subject", "study", "slide", "case", "camera", *_GROUP_WORDS})
)
@pytest.mark.parametrize("spelled", ["{}", "{}_id", "{}ID"])
def test_columns_of_groups_are_named_unless_they_are_used(tmp_path, column, spelled):
    name = spelled.format(column)
    plant(tmp_path, {file: image_bytes() for file, _ in ROWS})
    (tmp_path / "m.csv").write_text(table(f"path,label,{name}", "7", "7", "8", "8"))
    dataset = find_dataset(tmp_path / "m.csv", fractions=None)
    [warning] = [line for line in dataset.listing.warnings if "--group-column" in line]
    assert re.search(rf"images of one {name} may .*--group-column {name}\b", warning)
    used = find_dataset(tmp_path / "m.csv", fractions=None, options=DataOptions(group_column=name))
    assert not used.listing.warnings
    assert used.groups.tolist() == ["7", "7", "8", "8"]


def test_the_table_says_which_columns_are_used(tmp_path):
    plant(tmp_path, {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "m.csv").write_text(table("filename,Class,age", "1", "2", "3", "4"))
    found = survey(find_dataset(tmp_path / "m.csv", fractions=None), "m.csv")
    assert "columns   filename (path), Class (label)" in str(found)
    assert found.to_dict()["columns"] == {"filename": "path", "Class": "label", "age": ""}


def test_the_column_split_group_is_taken_for_groups(tmp_path):
    write_groups(tmp_path, [("ab"[index % 2], "", f"g{index // 2}") for index in range(12)])
    manifest = tmp_path / "m.csv"
    manifest.write_text(manifest.read_text().replace("patient", "split_group"))
    dataset = find_dataset(manifest)
    assert dataset.listing.columns["split_group"] == "group"
    assert len(np.unique(dataset.groups)) == 6
    for group in np.unique(dataset.groups):
        assert len(set(dataset.splits[dataset.groups == group])) == 1


def test_a_column_of_uncertain_marks_is_a_label_where_these_are_taken_for_one(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path, ["path", "A", "B", "C"], [["a.png", "1", "0", "-1"], ["b.png", "0", "1", ""]]
    )
    assert opened(path).classes == ("A", "B")
    dataset = opened(path, uncertain="positive")
    np.testing.assert_array_equal(dataset.labels, [[1, 0, 1], [0, 1, np.nan]])


def test_a_column_with_few_cells_that_are_no_marks_is_told_of(tmp_path: Path) -> None:
    rows = [["a.png", "1", "0", "0"], ["b.png", "0", "1", "1"], ["c.png", "0", "1", "2"]]
    path = write_manifest(tmp_path, ["path", "A", "B", "C"], rows)
    dataset = opened(path)
    assert dataset.classes == ("A", "B")
    assert "column C is not used as a label: line 4 of list.csv holds '2', and a label has 1, 0, -1 or " in (
        "\n".join(dataset.listing.warnings)
    )
    assert not any("column" in each for each in opened(path, label_columns=("A", "B")).listing.warnings)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["path", "A", "A"], "list.csv: 2 columns are called 'A'; rename them, or leave one"),
        (["path", "e\u0301", "\u00e9"], "columns .* and .* are spelled alike; rename one of them"),
    ],
)
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_columns_of_one_name_are_refused(tmp_path: Path, header: list[str], message: str, task: str) -> None:
    path = write_manifest(tmp_path, header, [["a.png", "1", "0"], ["b.png", "0", "1"]])
    targets = tuple(dict.fromkeys(header[1:])) if task == "regression" else ()
    with pytest.raises(UserError, match=message):
        opened(path, task=task, targets=targets)
    parquet = tmp_path / "list.parquet"
    columns = [["a.png", "b.png"], [1, 0], [0, 1]]
    pq.write_table(pa.Table.from_arrays(list(map(pa.array, columns)), names=header), parquet)
    with pytest.raises(UserError, match=message.replace("csv", "parquet")):
        opened(parquet, task=task, targets=targets)


def test_a_label_column_that_is_named_twice_is_one(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, ["path", "A", "B"], [["a.png", "1", "0"], ["b.png", "0", "1"]])
    assert opened(path, label_columns=("A", "A")).classes == ("A",)


@pytest.mark.parametrize(
    ("header", "row", "options", "message"),
    [
        (["path", "A", "B"], ["2", "0"], {"label_columns": ("A", "B")}, r"A='2': must be 1 \(present\)"),
        (["path", "A", "B"], ["x", "y"], {"task": "multi-label"}, "has no column of 0 and 1"),
        (["path", "A", "B"], ["1", "0"], {"label_columns": ("C",)}, "label_columns='C': .* has the columns"),
        (["path", "label", "B"], ["x", "0"], {"task": "multi-label"}, "choose with --label-column"),
        (["path", "A|B", "C"], ["1", "0"], {}, "must not hold"),
    ],
)
def test_what_is_wrong_with_columns_is_said(
    tmp_path: Path, header: list[str], row: list[str], options: dict[str, object], message: str
) -> None:
    path = write_manifest(tmp_path, header, [["a.png", *row], ["b.png", *row]])
    with pytest.raises(UserError, match=message):
        opened(path, **options)


def test_a_long_text_is_no_path(tmp_path: Path) -> None:
    cells = [["1.png", "x" * 300, "a"], ["2.png", "y" * 5000, "b"]]
    dataset = opened(write_manifest(tmp_path, ["where", "report", "label"], cells))
    assert dataset.names == ["1.png", "2.png"]
    assert dataset.listing.columns == {"where": "path", "report": "", "label": "label"}
