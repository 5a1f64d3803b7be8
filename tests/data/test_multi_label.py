"""Several labels an image: how they are told and dealt out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.helpers.manifests import opened, write_manifest

from skipnets.data import open_dataset
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
    path = write_manifest(tmp_path, ["path", "a", "b"], [["a.png", "0", "1"], ["b.png", "1", ""]])
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
    path = write_manifest(tmp_path, ["path", "patient", "a", "b", "c"], rows)
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
    path = write_manifest(tmp_path, ["path", "a", "b"], rows)
    dataset = find_dataset(path)
    dataset.write_splits(tmp_path / "splits.csv")
    again = find_dataset(path, splits=tmp_path / "splits.csv", options=DataOptions(uncertain="positive"))
    assert again.splits.tolist() == dataset.splits.tolist()
    assert any("1 image: other labels are unknown than" in line for line in again.listing.warnings)
    write_manifest(tmp_path, ["path", "a", "b"], [[name, "1", mark] for name, _, mark in rows])
    with pytest.raises(UserError, match="which the data hold under another class"):
        find_dataset(path, splits=tmp_path / "splits.csv")


def test_labels_that_given_splits_lack_are_told_of(tmp_path: Path) -> None:
    rows = [["a.png", "train", "1", "0"], ["b.png", "train", "0", "0"], ["c.png", "val", "1", "1"]]
    rows += [["d.png", "test", "0", "1"], ["e.png", "val", "0", "0"]]
    warnings = find_dataset(write_manifest(tmp_path, ["path", "split", "a", "b"], rows)).listing.warnings
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
