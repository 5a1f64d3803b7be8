"""Several labels an image: how manifests tell them, how they are dealt out, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skipnets.data import open_dataset
from skipnets.data.dataset import ImageDataset
from skipnets.data.multi_label import (
    absent_labels,
    label_texts,
    labels_from_texts,
    names_in_cell,
    read_mark,
    separator_of,
)
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.splits import Shares, cut_groups
from skipnets.errors import UserError

NAN = float("nan")


def manifest(folder: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A manifest whose first column names images, which are made as well."""
    for index, row in enumerate(rows):
        Image.new("L", (4, 4), index % 256).save(folder / row[0])
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def opened(path: Path, **options: object) -> ImageDataset:
    return open_dataset(path, fractions=None, options=DataOptions(**options))  # type: ignore[arg-type]


def test_columns_of_marks_are_labels_unknown_where_they_are_empty_or_uncertain(tmp_path: Path) -> None:
    rows = [["a.png", "1", "0.0"], ["b.png", "", "-1.0"], ["c.png", "False", "1.0"]]
    path = manifest(tmp_path, ["path", "Mass", "Edema"], rows)
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
    dataset = opened(manifest(tmp_path, ["path", "label"], rows), task="multi-label")
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 0], [0, 1]])


def test_a_column_called_labels_with_bars_is_read_so_by_itself(tmp_path: Path) -> None:
    rows = [["a.png", "cat|dog"], ["b.png", "dog"]]
    assert opened(manifest(tmp_path, ["path", "Finding Labels"], rows)).multi_label
    one = opened(manifest(tmp_path, ["path", "label"], rows))
    assert not one.multi_label
    assert any("--task multi-label" in warning for warning in one.listing.warnings)
    assert not opened(tmp_path / "list.csv", task="single-label").multi_label


def test_equal_files_in_several_class_folders_are_one_image_if_that_is_asked_for(tmp_path: Path) -> None:
    for name, level in {"cat/a.png": 1, "dog/x.png": 1, "dog/b.png": 2, "cat/c.png": 3}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), level).save(tmp_path / name)
    dataset = opened(tmp_path, task="multi-label")
    assert dict(zip(dataset.names, dataset.labels.tolist(), strict=True)) == {
        "cat/a.png": [1, 1],
        "cat/c.png": [1, 0],
        "dog/b.png": [0, 1],
    }
    assert len(opened(tmp_path)) == 4


def test_published_tables_of_chest_images_are_read_by_themselves(tmp_path: Path) -> None:
    chexpert = ["Path", "Sex", "Age", "Frontal/Lateral", "No Finding", "Edema", "Pleural Effusion"]
    rows = [
        ["a.png", "Male", "68", "Frontal", "", "1.0", "-1.0"],
        ["b.png", "Female", "0", "Lateral", "1.0", "0.0", "0.0"],
    ]
    dataset = opened(manifest(tmp_path, chexpert, rows))
    assert dataset.classes == ("Edema", "No Finding", "Pleural Effusion")
    np.testing.assert_array_equal(dataset.labels, [[1, NAN, NAN], [0, 1, 0]])

    nih = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "OriginalImage[Width"]
    rows = [
        ["a.png", "Edema|Mass", "0", "1", "2"],
        ["b.png", "Mass", "1", "1", "3"],
        ["c.png", "Edema", "0", "2", "3"],
    ]
    dataset = opened(manifest(tmp_path, nih, rows))
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 1], [1, 0]])
    assert any("--group-column Patient ID" in warning for warning in dataset.listing.warnings)

    padchest = ["ImageID", "PatientID", "Labels"]
    rows = [["a.png", "1", "['normal', 'scoliosis']"], ["b.png", "2", "[]"]]
    dataset = opened(manifest(tmp_path, padchest, rows))
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 0]])


def test_missing_marks_are_written_in_several_ways(tmp_path: Path) -> None:
    rows = [["a.png", "1.00", "NA"], ["b.png", "NaN", "0"], ["c.png", "0", "1"], ["d.png", "-1.0", "n/a"]]
    dataset = opened(manifest(tmp_path, ["path", "A", "B"], rows))
    np.testing.assert_array_equal(dataset.labels, [[1, NAN], [NAN, 0], [0, 1], [NAN, NAN]])
    assert any("1 uncertain mark" in note for note in dataset.listing.notes)


def test_a_column_of_uncertain_marks_is_a_label_where_these_are_taken_for_one(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["path", "A", "B", "C"], [["a.png", "1", "0", "-1"], ["b.png", "0", "1", ""]])
    assert opened(path).classes == ("A", "B")
    dataset = opened(path, uncertain="positive")
    np.testing.assert_array_equal(dataset.labels, [[1, 0, 1], [0, 1, NAN]])


def test_what_is_said_where_uncertain_marks_cannot_be(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["path", "labels"], [["a.png", "cat|dog"], ["b.png", "dog"]])
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "x.png")
    (tmp_path / "dog").mkdir()
    Image.new("L", (4, 4), 9).save(tmp_path / "dog" / "y.png")
    for data in (path, tmp_path):
        warnings = opened(data, uncertain="positive", task="multi-label").listing.warnings
        assert any(each.startswith("uncertain=positive: has no effect") for each in warnings)


def test_a_column_with_few_cells_that_are_no_marks_is_told_of(tmp_path: Path) -> None:
    rows = [["a.png", "1", "0", "0"], ["b.png", "0", "1", "1"], ["c.png", "0", "1", "2"]]
    path = manifest(tmp_path, ["path", "A", "B", "C"], rows)
    dataset = opened(path)
    assert dataset.classes == ("A", "B")
    assert (
        "column C is not taken for a label: line 4 of list.csv holds '2', and a label has 1, 0, -1 or "
        in ("\n".join(dataset.listing.warnings))
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
    path = manifest(tmp_path, header, [["a.png", "1", "0"], ["b.png", "0", "1"]])
    targets = tuple(dict.fromkeys(header[1:])) if task == "regression" else ()
    with pytest.raises(UserError, match=message):
        opened(path, task=task, targets=targets)
    parquet = tmp_path / "list.parquet"
    columns = [["a.png", "b.png"], [1, 0], [0, 1]]
    pq.write_table(pa.Table.from_arrays(list(map(pa.array, columns)), names=header), parquet)
    with pytest.raises(UserError, match=message.replace("csv", "parquet")):
        opened(parquet, task=task, targets=targets)


def test_names_of_columns_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["path", "'=1+1", "B"], [["a.png", "1", "0"], ["b.png", "0", "1"]])
    assert opened(path).classes == ("=1+1", "B")


def test_a_label_column_that_is_named_twice_is_one(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["path", "A", "B"], [["a.png", "1", "0"], ["b.png", "0", "1"]])
    assert opened(path, label_columns=("A", "A")).classes == ("A",)


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
    [warning] = opened(manifest(tmp_path, ["path", "labels"], rows)).listing.warnings
    assert warning.startswith("labels that look like several: 'dog;cow'; names are separated by \"|\" here")


def test_an_empty_cell_of_several_labels_says_which_option_allows_it(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["path", "labels"], [["a.png", "cat;dog"], ["b.png", ""]])
    with pytest.raises(UserError, match="every image needs one, unless it has any number: --task multi-lab"):
        opened(path)


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            ["path", "A", "B"],
            {},
            r"list.csv: lists a.png twice, with label 'A' and '\(none\)'; all labels of",
        ),
        (["path", "A"], {"targets": ("A",)}, r"lists a.png twice, with numbers '1' and '0'$"),
        (["path", "A"], {}, "twice, with label '1' and '0'; several labels .*, with --task multi-label$"),
    ],
)
def test_an_image_that_is_listed_twice_is_told_of_in_the_terms_of_its_task(
    tmp_path: Path, header: list[str], options: dict[str, object], message: str
) -> None:
    rows = [["a.png", "1", "0"], ["b.png", "1", "1"], ["a.png", "0", "0"]]
    with pytest.raises(UserError, match=message):
        opened(manifest(tmp_path, header, [row[: len(header)] for row in rows]), **options)


def test_a_file_that_cannot_be_opened_is_left_to_the_decoder(tmp_path: Path) -> None:
    for name, level in {"cat/a.png": 1, "dog/a.png": 1}.items():
        (tmp_path / name).parent.mkdir()
        Image.new("L", (4, 4), level).save(tmp_path / name)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    dataset = opened(tmp_path, task="multi-label")
    assert dict(zip(dataset.names, dataset.labels.tolist(), strict=True)) == {
        "cat/a.png": [1, 1],
        "cat/gone.png": [1, 0],
    }


def test_a_column_that_lists_one_label_only_is_doubted(tmp_path: Path) -> None:
    rows = [["a.png", "haze primary"], ["b.png", "clear"]]
    dataset = opened(manifest(tmp_path, ["path", "label"], rows), task="multi-label")
    assert any("lists more than one label" in warning for warning in dataset.listing.warnings)


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
    path = manifest(tmp_path, header, [["a.png", *row], ["b.png", *row]])
    with pytest.raises(UserError, match=message):
        opened(path, **options)


def test_options_that_contradict_one_another_and_the_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label_columns: must not be given with label_column=b"):
        DataOptions(label_columns=("a",), label_column="b")
    with pytest.raises(UserError, match="must not be given with task=single-label"):
        DataOptions(label_columns=("a",), task="single-label")
    with pytest.raises(UserError, match="uncertain=positive: must not be given with task=single-label"):
        DataOptions(uncertain="positive", task="single-label")
    with pytest.raises(UserError, match=r"label_columns='Edema': must be several, such as \('Edema',\)"):
        DataOptions(label_columns="Edema")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="task='several': must be one of"):
        DataOptions(task="several")  # type: ignore[arg-type]
    path = manifest(tmp_path, ["path", "a", "b"], [["a.png", "0", "1"], ["b.png", "1", ""]])
    with pytest.raises(UserError, match=r"task=single-label: .* has a column of 0 and 1 .*\(a, b\)"):
        opened(path, task="single-label")
    with pytest.raises(
        UserError, match="--uncertain positive: must not be given with digits, a named dataset"
    ):
        open_dataset("digits", options=DataOptions(uncertain="positive"))
    with pytest.raises(UserError, match="digits have one label each"):
        open_dataset("digits", options=DataOptions(task="multi-label"))


def test_splits_have_their_share_of_every_label_and_keep_groups_and_copies_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.2, 0.05])
    rows = [
        [f"{index}.png", f"p{index // 2}", *map(str, (generator.random(3) < shares).astype(int))]
        for index in range(240)
    ]
    path = manifest(tmp_path, ["path", "patient", "a", "b", "c"], rows)
    options = DataOptions(group_column="patient")
    dataset = find_dataset(path, seed=1, options=options)
    wanted = {"train": 0.7, "val": 0.15, "test": 0.15}
    total = dataset.counts()
    for name, share in wanted.items():
        part = dataset.split(name)
        assert np.all(np.abs(part.counts() - share * total) <= 2)
        assert abs(len(part) - share * len(dataset)) <= 4
    assert dataset.groups is not None
    for group in np.unique(dataset.groups):
        assert len(set(dataset.splits[dataset.groups == group].tolist())) == 1
    dataset.write_splits(tmp_path / "splits.csv")
    again = find_dataset(path, splits=tmp_path / "splits.csv", options=options)
    assert again.splits.tolist() == dataset.splits.tolist()
    np.testing.assert_array_equal(again.labels, dataset.labels)


def test_splits_are_repeated_where_other_labels_are_unknown_alone(tmp_path: Path) -> None:
    rows = [[f"{index}.png", str(index % 2), "-1" if index == 3 else "0"] for index in range(12)]
    path = manifest(tmp_path, ["path", "a", "b"], rows)
    dataset = find_dataset(path)
    dataset.write_splits(tmp_path / "splits.csv")
    again = find_dataset(path, splits=tmp_path / "splits.csv", options=DataOptions(uncertain="positive"))
    assert again.splits.tolist() == dataset.splits.tolist()
    assert any("1 image: other labels are unknown than" in line for line in again.listing.warnings)
    manifest(tmp_path, ["path", "a", "b"], [[name, "1", mark] for name, _, mark in rows])
    with pytest.raises(UserError, match="which the data hold under another class"):
        find_dataset(path, splits=tmp_path / "splits.csv")


def test_labels_that_given_splits_lack_are_told_of(tmp_path: Path) -> None:
    rows = [["a.png", "train", "1", "0"], ["b.png", "train", "0", "0"], ["c.png", "val", "1", "1"]]
    rows += [["d.png", "test", "0", "1"], ["e.png", "val", "0", "0"]]
    warnings = find_dataset(manifest(tmp_path, ["path", "split", "a", "b"], rows)).listing.warnings
    assert "labels that are present in no image of train, where each cannot be learned: b" in warnings


def test_one_label_an_image_is_dealt_out_the_same_way_as_a_class() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 60)
    groups = np.arange(60) // 3
    shares = Shares({"train": 0.6, "val": 0.4})
    as_classes, as_labels = (cut_groups(each, groups, shares, 3) for each in (labels, np.eye(4)[labels]))
    assert as_classes.tolist() == as_labels.tolist()


def test_labels_that_no_image_of_a_split_has_are_named() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    found = absent_labels(labels, ("a", "b"), np.array(["train", "train", "test"]))
    assert found == [
        "labels that are absent in no image of test, where each has no AUROC there: a, b",
        "labels that are present in no image of train, where each cannot be learned: b",
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1), (" 1.0 ", 1), ("TRUE", 1), ("0", 0), ("false", 0), ("yes", None), ("2", None)],
)
def test_marks(cell: str, value: float | None) -> None:
    assert read_mark(cell) == value


def test_names_in_cells() -> None:
    assert names_in_cell("a| b ||a", "|") == ["a", "b"]
    assert names_in_cell('["a", "b|c"]', "|") == ["a", "b|c"]
    assert separator_of(["a;b", '["a|b"]']) == ";"
    assert names_in_cell("['a', 'b']", "|") == ["a", "b"]
    assert names_in_cell("[1, 2]", "|") == ["1", "2"]
    assert names_in_cell(r'["\ud83d\ude00"]', "|") == ["\N{GRINNING FACE}"]
    for cell in ("[1.5]", "[a]", '["a", "b"', "[ 'a', 'b", "[" * 20_000 + "]"):
        with pytest.raises(UserError, match="must be a list of names"):
            names_in_cell(cell, "|")


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, NAN])] * 3), min_size=1, max_size=5))
def test_texts_hold_what_is_known(rows: list[tuple[float, ...]]) -> None:
    labels = np.array(rows, np.float32)
    classes = ("a", "b c", "d")
    np.testing.assert_array_equal(labels_from_texts(label_texts(labels, classes), classes), labels)


def test_a_text_with_another_label_is_refused() -> None:
    with pytest.raises(UserError, match="no such label; there are a, b"):
        labels_from_texts(["a|c"], ("a", "b"))
