"""Numbers to predict: reading them from manifests, texts that hold them exactly, and their parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.helpers.disks import TARGETS, write_disks

from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey
from skipnets.data.targets import as_number, quantile_labels, target_texts, targets_from_texts
from skipnets.errors import UserError

NUMBERS = DataOptions(targets=TARGETS, group_column="patient")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disks(tmp_path_factory.mktemp("numbers") / "disks", 80)


def write(folder: Path, *rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    for row in rows[1:]:
        Image.new("L", (8, 8)).save(folder / row.split(",")[0])
    return path


@given(st.lists(st.tuples(*[st.floats(-1e30, 1e30)] * 2), min_size=1))
def test_texts_hold_numbers_exactly(rows: list[tuple[float, float]]) -> None:
    targets = np.array(rows)
    np.testing.assert_array_equal(targets_from_texts(target_texts(targets)), targets)


def test_empty_cells_are_unknown_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "path,age,size", "a.png,41,", "b.png,,2", "c.png,43,3.5")
    dataset = find_dataset(path, fractions=None, options=DataOptions(targets=("age", "size")))
    np.testing.assert_array_equal(dataset.labels, [[41, np.nan], [np.nan, 2], [43, 3.5]])
    assert dataset.label_names == ["41|", "|2", "43|3.5"]
    np.testing.assert_array_equal(targets_from_texts(dataset.label_names), dataset.labels)
    assert dataset.counts().tolist() == [2, 2]
    assert "2 empty cells: these numbers are missing, and count in no loss or metric" in dataset.listing.notes
    told = survey(dataset, "list")
    assert [(row["unknown"], row["mean"]) for row in told.to_dict()["targets"]] == [(1, 42), (1, 2.75)]
    assert "unknown" in str(told)
    path = write(tmp_path, "path,age,size", "a.png,41,1", "b.png, ,")
    with pytest.raises(UserError, match="line 3: age, size are empty, as in 1 row; every image needs at"):
        find_dataset(path, fractions=None, options=DataOptions(targets=("age", "size")))
    path = write(tmp_path, "path,age,size", "a.png,41,NA", "b.png,42,2")
    with pytest.raises(
        UserError, match=r"line 2: size='NA': must be a finite .*, or empty where it is not k"
    ):
        find_dataset(path, fractions=None, options=DataOptions(targets=("age", "size")))
    path = write(tmp_path, "path,age,size", "a.png,41,", "b.png,42,")
    with pytest.raises(UserError, match="size is empty in every row, so there is nothing to learn"):
        find_dataset(path, fractions=None, options=DataOptions(targets=("age", "size")))


def test_what_is_not_known_is_in_no_part_of_the_range() -> None:
    labels = np.stack([np.arange(40.0), np.where(np.arange(40) % 2, np.nan, np.arange(40.0))], axis=1)
    parts = quantile_labels(labels)
    assert parts.sum(0).tolist() == [20, 20, 10, 10]
    assert parts[1].tolist() == [1, 0, 0, 0]


def test_whole_numbers_have_no_fraction() -> None:
    assert target_texts(np.array([[3.0, -1.5]])) == ["3|-1.5"]


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1.5", 1.5),
        (" -3 ", -3),
        ("1e3", 1000),
        ("nan", None),
        ("inf", None),
        ("-1e300", None),
        ("", None),
        ("3,5", None),
        ("1_000", None),
        ("0x10", None),
    ],
)
def test_cells_that_are_numbers(cell: str, number: float | None) -> None:
    assert as_number(cell) == number


def test_named_columns_are_the_targets_in_their_order(disks: Path) -> None:
    dataset = find_dataset(disks, options=NUMBERS)
    assert (dataset.task, dataset.classes) == ("regression", TARGETS)
    assert dataset.labels.shape == (80, 2)
    line = dict(
        zip(("name", "patient", *TARGETS, "grade"), disks.read_text().splitlines()[1].split(","), strict=True)
    )
    first = dataset.names.index(line["name"])
    assert dataset.labels[first].tolist() == [float(line[name]) for name in TARGETS]
    assert dataset.label_names[first] == "|".join(line[name] for name in TARGETS).replace(".0", "")
    # Groups stay whole, and every split has its share.
    assert dataset.groups is not None
    assert all(len(set(dataset.splits[dataset.groups == group])) == 1 for group in set(dataset.groups))
    assert {split: int((dataset.splits == split).sum()) for split in ("train", "val", "test")} == {
        "train": 56,
        "val": 12,
        "test": 12,
    }


def test_splits_get_their_share_of_all_parts_of_the_range(disks: Path) -> None:
    labels = find_dataset(disks, options=NUMBERS).labels
    parts = quantile_labels(labels)
    assert parts.shape == (80, 2 * 4)
    assert (parts.reshape(80, 2, 4).sum(2) == 1).all()
    assert parts.sum(0).tolist() == [20] * 8
    order = np.argsort(labels[:, 0])
    assert np.flatnonzero(parts[order, 1]).tolist() == list(range(20, 40))
    # Few images are one part, and grades fall into fewer parts than there are.
    assert quantile_labels(labels[:30]).shape == (30, 2)
    assert np.unique(quantile_labels(np.repeat([[0.0], [1.0]], 100, axis=0)), axis=0).shape[0] == 2


def test_splits_of_a_run_are_repeated(disks: Path, tmp_path: Path) -> None:
    dataset = find_dataset(disks, seed=3, options=NUMBERS)
    dataset.write_splits(tmp_path / "splits.csv")
    again = find_dataset(disks, splits=tmp_path / "splits.csv", options=NUMBERS)
    assert again.splits.tolist() == dataset.splits.tolist()
    changed = disks.with_name("changed.csv")
    changed.write_text(disks.read_text().replace(",-", ",-1"))
    with pytest.raises(UserError, match="which the data hold with another number"):
        find_dataset(changed, splits=tmp_path / "splits.csv", options=NUMBERS)
    changed.unlink()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("path,age", "a.png,41", "b.png,old"), r"line 3: age='old': must be a finite number"),
        (("path,age", "a.png,41", "b.png,"), r"line 3: age is empty, as in 1 row; every image needs"),
        (("path,age", "a.png,1e31", "b.png,1"), r"line 2: age='1e31': must be a finite number, at most 1e"),
        (("path,age", "a.png,nan", "b.png,1"), r"line 2: age='nan': must be a finite number"),
        (("path,age", "a.png,-inf", "b.png,1"), r"line 2: age='-inf': must be a finite number"),
        (("path,weight", "a.png,1", "b.png,1"), r"targets='age': .* has the columns path, weight"),
    ],
)
def test_what_is_no_target_is_refused_in_a_line(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_dataset(write(tmp_path, *rows), fractions=None, options=DataOptions(targets=("age",)))
    assert "\n" not in str(caught.value)


def test_the_only_column_of_numbers_is_the_target(tmp_path: Path) -> None:
    options = DataOptions(task="regression")
    path = write(tmp_path, "path,age,name", "a.png,41,x", "b.png,42.5,y")
    dataset = find_dataset(path, fractions=None, options=options)
    assert (dataset.classes, dataset.labels[:, 0].tolist()) == (("age",), [41, 42.5])
    assert dataset.listing.columns["age"] == "target"
    path = write(tmp_path, "path,age,target", "a.png,41,1", "b.png,42.5,2")
    assert find_dataset(path, fractions=None, options=options).classes == ("target",)
    path = write(tmp_path, "path,age,size", "a.png,41,1", "b.png,42.5,2")
    with pytest.raises(UserError, match="age, size hold numbers; name them with --targets"):
        find_dataset(path, fractions=None, options=options)
    path = write(tmp_path, "path,name,note", "a.png,x,y", "b.png,y,z")
    with pytest.raises(
        UserError, match=r"to be predicted\? its columns are path, name, note; name them with"
    ):
        find_dataset(path, fractions=None, options=options)


def test_numbers_of_rows_without_a_name_are_no_target(tmp_path: Path) -> None:
    path = write(tmp_path, "path,,age", "a.png,0,41", "b.png,1,42.5")  # as pandas writes a table
    assert find_dataset(path, fractions=None, options=DataOptions(task="regression")).classes == ("age",)
    path = write(tmp_path, "path,,age", "a.png,0,41", "b.png,1,")
    with pytest.raises(UserError, match="line 3: age is empty, as in 1 row; every image needs its number"):
        find_dataset(path, fractions=None, options=DataOptions(task="regression"))


def test_what_has_no_numbers_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    for data, message in (
        ("digits", "has classes, not numbers"),
        (tmp_path, "is a folder; it takes a manifest"),
    ):
        with pytest.raises(UserError, match=message):
            find_dataset(data, options=DataOptions(task="regression"))
    for changes, message in (
        ({"task": "multi-label", "targets": ("a",)}, "targets: must not be given with task=multi-label"),
        ({"task": "regression", "label_columns": ("a",)}, "label_columns: must not be given with task=regr"),
        ({"task": "regression", "label_column": "a"}, "label_column: must not be given with task=regression"),
        ({"targets": ("a",), "label_column": "b"}, "targets: must not be given with label_column=b"),
        (
            {"targets": ("a",), "label_columns": ("b", "c")},
            "targets: must not be given with label_columns=b, c",
        ),
    ):
        with pytest.raises(UserError, match=message):
            DataOptions(**changes)  # type: ignore[arg-type]


def test_the_only_column_that_can_be_meant_is_read_and_its_first_line_without_a_number_named(
    tmp_path: Path,
) -> None:
    for header in ("path,age", "path,label,note"):
        others = ",x" * header.count(",note")
        path = write(tmp_path, header, f"a.png,41{others}", f"b.png,old{others}")
        with pytest.raises(UserError, match=r"line 3: (age|label)='old': must be a finite number"):
            find_dataset(path, options=DataOptions(task="regression"))


def test_copies_may_differ_a_little_in_their_numbers(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (4, 16, 16), dtype=np.uint8)
    for index, each in enumerate((*pixels, pixels[0] + 1)):
        Image.fromarray(each).save(tmp_path / f"{index}.png")

    def warnings(last: float) -> str:
        numbers = ["0", "10", "20", "30", str(last)]
        rows = [f"{index}.png,{number}" for index, number in enumerate(numbers)]
        (tmp_path / "list.csv").write_text("\n".join(["path,age", *rows]) + "\n")
        options = DataOptions(targets=("age",))
        found = find_dataset(
            tmp_path / "list.csv", fractions=None, duplicates="keep-together", options=options
        )
        assert len(found.copies) == 1
        return "\n".join(found.listing.warnings)

    assert "1 pair of copies with different numbers, such as 0.png and 4.png" in warnings(5)
    assert "different" not in warnings(0.5)


def test_a_folder_with_a_table_of_its_own_is_read(disks: Path) -> None:
    table = disks.with_name("metadata.csv")
    table.write_text(disks.read_text())
    assert find_dataset(disks.parent, options=NUMBERS).classes == TARGETS
    table.unlink()


def test_numbers_that_are_taken_for_classes_are_told_of(disks: Path) -> None:
    dataset = find_dataset(disks, fractions=None, options=DataOptions(label_column=TARGETS[0]))
    assert any("--task regression takes them for numbers" in each for each in dataset.listing.warnings)


def test_a_survey_tells_the_range_of_each_target(disks: Path) -> None:
    dataset = find_dataset(disks, options=NUMBERS)
    found = survey(dataset, "disks")
    told = found.to_dict()
    assert (told["task"], [each["name"] for each in told["targets"]]) == ("regression", list(TARGETS))
    assert told["targets"][0]["mean"] == pytest.approx(dataset.labels[:, 0].mean())
    assert "classes" not in told
    assert "standard deviation" in str(found)
