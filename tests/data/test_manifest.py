"""Tables of images and labels: whatever wrote them, they end in the right images or in one clear line."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tests.data.test_layout import found, image_bytes, plant

from skipnets.data.manifest import _GROUP_WORDS, MissingFilesError
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey
from skipnets.errors import UserError

FOUR = "test: cat 2, dog 2"
ROWS = [("a.png", "cat"), ("b.png", "cat"), ("c.png", "dog"), ("d.png", "dog")]


def table(header: str, *more: str, separator: str = ",", prefix: str = "") -> str:
    """ROWS below a header, each with one of `more` behind."""
    lines = [separator.join((prefix + name, label, *more[i : i + 1])) for i, (name, label) in enumerate(ROWS)]
    return "\n".join([*([header] if header else []), *lines]) + "\n"


class Case(NamedTuple):
    """A manifest beside a.png to d.png and what is to come of it; see `tests.data.test_layout.Case`."""

    name: str
    content: str | bytes
    expected: str
    said: tuple[str, ...] = ()
    options: dict[str, object] = {}  # noqa: RUF012 - never changed


CASES = {
    "path,label": Case("m.csv", table("path,label"), FOUR),
    "other names": Case("m.csv", table("file_name,Class"), FOUR),
    "semicolons": Case("m.csv", table("image;target", separator=";"), FOUR),
    "tabs": Case("m.tsv", table("filename\tlabel", separator="\t"), FOUR),
    "tabs in a .csv": Case("m.csv", table("filename\tlabel", separator="\t"), FOUR),
    "byte order mark": Case("m.csv", table("path,label").encode("utf-8-sig"), FOUR),
    "UTF-16": Case("m.csv", table("path;label", separator=";").encode("utf-16"), FOUR),
    "Windows-1252": Case(
        "m.csv",
        table("path,label").replace("dog", "köter").encode("cp1252"),
        "test: cat 2, köter 2",
        ("m.csv is not UTF-8; read as Windows-1252",),
    ),
    "Windows line ends": Case("m.csv", table("path,label").replace("\n", "\r\n"), FOUR),
    "quotes": Case(
        "m.csv", table("path,label").replace("dog", '"dog, ""big"""'), 'test: cat 2, dog, "big" 2'
    ),
    "no header": Case("m.csv", table(""), FOUR, ("m.csv has no header",)),
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
    "a list": Case("m.txt", table("", separator=" "), FOUR, ("no header",)),
    "JSON lines": Case(
        "m.jsonl", "\n".join(f'{{"image": "{name}", "label": "{label}"}}' for name, label in ROWS), FOUR
    ),
    "splits": Case(
        "m.csv",
        table("path,label,split", "Training", "validation", "Training", "test"),
        "train: cat 1, dog 1; val: cat 1; test: dog 1",
        ("in train but not in test", "in train but not in val"),
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
    "identifiers": Case("m.csv", table("image_id,label").replace(".png", ""), FOUR),
    "Windows paths": Case("m.csv", table("path,label", prefix=".\\").replace("a.png", "in\\..\\a.png"), FOUR),
    "another machine": Case(
        "m.csv",
        table("path,label", prefix="C:\\Users\\me\\set\\"),
        FOUR,
        ('"C:/Users/me/set/" in the paths is read as',),
    ),
    "another home": Case(
        "m.csv",
        table("path,label", prefix="/home/me/set/"),
        FOUR,
        ('"/home/me/set/" in the paths is read as',),
    ),
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
    "one file as two paths with two labels": Case(
        "m.csv",
        table("path,label") + "./a.png,dog\n",
        r"error: lists a\.png twice, with label 'cat' and 'dog'; several labels .* one row, such as cat\|dog",
    ),
    "splits in other languages": Case(
        "m.csv",
        table("path,label,split", "Entraînement", "essai", " Trening ", "TESTAUS"),
        "train: cat 1, dog 1; test: cat 1, dog 1",
    ),
    "a class in test alone": Case(
        "m.csv",
        table("path,label,split", "train", "train", "test", "test"),
        "train: cat 2; test: dog 2",
        (
            'classes that are not in train, so every image of them counts as wrong: "dog"',
            'classes that are in train but not in test: "cat"',
        ),
    ),
    "a row twice": Case(
        "m.csv", table("path,label") + "a.png,cat\n./a.png,cat\n", FOUR, ("2 rows that repeat",)
    ),
    "two splits": Case(
        "m.csv",
        "path,label,split\na.png,cat,train\na.png,cat,test\n",
        "error: lists a.png twice, with split 'train' and 'test'",
    ),
    "missing files": Case(
        "m.csv",
        table("path,label") + "x.png,cat\ny.png,cat\n",
        r"error: 2 of 6 listed files are not below .*: x\.png, y\.png; --root names .* --missing skip",
    ),
    "missing files skipped": Case(
        "m.csv",
        table("path,label") + "x.png,cat\n",
        FOUR,
        ("1 listed file not there: x.png", "1 listed files that are not there"),
        {"missing": "skip"},
    ),
    "no label": Case(
        "m.csv", "path,label\na.png,cat\nb.png, \n", "error: line 3: label is empty, as in 1 row"
    ),
    "no such split": Case(
        "m.csv", "path,label,split\na.png,cat,fold1\n", "error: line 2: split='fold1': must name"
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
        "error: which column holds the labels. .* with --label-column .column y is not taken for a label: "
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
    "a short row": Case("m.csv", "path,label\na.png\n", "error: line 2: has 1 value, not 2"),
    "no JSON": Case("m.jsonl", "a.png cat\n", "error: line 1: not JSON"),
    "no objects": Case("m.jsonl", "[1]\n", "error: line 1: must be an object"),
    "no text": Case("m.csv", b"\xff\0\0", "error: not a text file"),
    "no Parquet": Case("m.parquet", b"PAR", "error: not a Parquet file"),
    "nothing": Case("m.csv", "", "error: lists no images"),
    "a header alone": Case("m.csv", "path,label\n", "error: lists no images"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_manifest(tmp_path, case):
    plant(tmp_path, {"in": None, **{name: image_bytes() for name, _ in ROWS}})
    path = tmp_path / case.name
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    options = DataOptions(**case.options)
    if case.expected.startswith("error: "):
        with pytest.raises(UserError, match=case.expected.removeprefix("error: ")) as caught:
            find_dataset(path, fractions=None, options=options)
        assert "\n" not in str(caught.value)
        return
    dataset = find_dataset(path, fractions=None, options=options)
    assert found(dataset) == case.expected
    lines = [*dataset.listing.notes, *dataset.listing.warnings]
    lines += [f"{count} {reason}" for reason, count in dataset.listing.passed_over.items()]
    for pattern in case.said:
        assert any(re.search(pattern, line) for line in lines), lines
    if not case.said:
        assert not lines
    assert {dataset.open(index).size for index in range(len(dataset))} == {(5, 6)}


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


def test_missing_files_are_all_known(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{n}.png,cat\n" for n in range(500)))
    with pytest.raises(MissingFilesError, match=r"500 of 500 .* 18\.png, 19\.png and 480 more") as caught:
        find_dataset(tmp_path / "m.csv")
    assert caught.value.names == [f"{n}.png" for n in range(500)]


def test_parquet(tmp_path):
    plant(tmp_path, {name: image_bytes() for name, _ in ROWS})
    columns = {"image": [name for name, _ in ROWS], "label": [1.0, 1.0, 2.0, 2.0], "patient": [7, 7, 8, 8]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    dataset = find_dataset(
        tmp_path / "m.parquet", fractions=None, options=DataOptions(group_column="patient")
    )
    assert found(dataset) == "test: 1 2, 2 2"
    assert dataset.groups.tolist() == ["7", "7", "8", "8"]


def test_root(tmp_path):
    plant(tmp_path / "images", {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "m.csv").write_text(table("path,label"))
    with pytest.raises(UserError, match="4 of 4 listed files are not below"):
        find_dataset(tmp_path / "m.csv")
    dataset = find_dataset(tmp_path / "m.csv", fractions=None, options=DataOptions(root=tmp_path / "images"))
    assert found(dataset) == FOUR
    assert dataset.names == ["a.png", "b.png", "c.png", "d.png"]


def test_absolute_paths_elsewhere(tmp_path, monkeypatch):
    plant(tmp_path / "images", {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "m.csv").write_text(table("path,label", prefix="../images/"))
    monkeypatch.chdir(tmp_path / "lists")
    dataset = find_dataset("m.csv", fractions=None)
    assert dataset.names == [f"{tmp_path.as_posix()}/images/{name}" for name, _ in ROWS]
    assert dataset.open(0).size == (5, 6)


def test_metadata_of_hugging_face(tmp_path):
    plant(tmp_path, {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "metadata.csv").write_text(table("file_name,label"))
    dataset = find_dataset(tmp_path, fractions=None)
    assert found(dataset) == FOUR
    assert dataset.listing.notes == ["files and labels are those of metadata.csv"]


def test_metadata_without_labels_leaves_them_to_the_folders(tmp_path):
    plant(tmp_path, {"cat": 2, "dog": 2, "metadata.csv": "file_name,text\ncat/0.png,a cat\n"})
    assert found(find_dataset(tmp_path, fractions=None)) == FOUR


def test_columns_are_for_manifests(tmp_path):
    plant(tmp_path, {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="is a folder; --path-column and the like are for a manifest"):
        find_dataset(tmp_path, options=DataOptions(group_column="patient"))


def test_repeating_splits_of_a_manifest(tmp_path):
    plant(tmp_path, {f"{n}.png": image_bytes() for n in range(20)})
    lines = [f"{tmp_path / f'{n}.png'},{'cat' if n % 2 else 'dog'}" for n in range(20)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines]))
    dataset = find_dataset(tmp_path / "m.csv", seed=4)
    # Version 0.1 kept absolute paths as they were written.
    old = [f"{tmp_path / name},{dataset.classes[label]},{split}" for name, label, split in zip(
        dataset.names, dataset.labels, dataset.splits, strict=True)]  # fmt: skip
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split", *old]))
    again = find_dataset(tmp_path / "m.csv", splits=tmp_path / "splits.csv")
    assert again.names == dataset.names
    np.testing.assert_array_equal(again.splits, dataset.splits)
    (tmp_path / dataset.names[3]).unlink()
    with pytest.raises(UserError, match=f"1 of 20 listed files are not below .*{dataset.names[3]}"):
        find_dataset(tmp_path / "m.csv", splits=tmp_path / "splits.csv")
    fewer = find_dataset(
        tmp_path / "m.csv", splits=tmp_path / "splits.csv", options=DataOptions(missing="skip")
    )
    assert fewer.names == [name for name in dataset.names if name != dataset.names[3]]


def write_groups(tmp_path, rows) -> None:
    """A manifest of (label, split, patient) rows, an image each."""
    lines = ["path,label,split,patient"] if rows[0][1] else ["path,label,patient"]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").write_bytes(image_bytes())
        lines.append(",".join([f"{number}.png", *filter(None, row)]))
    (tmp_path / "m.csv").write_text("\n".join(lines))


PATIENTS = DataOptions(group_column="patient")


def test_groups_are_not_divided(tmp_path):
    write_groups(tmp_path, [("cat" if n % 2 else "dog", "", f"p{n // 4}") for n in range(160)])
    dataset = find_dataset(tmp_path / "m.csv", options=PATIENTS)
    for group in set(dataset.groups):
        assert len(set(dataset.splits[dataset.groups == group])) == 1
    assert [int((dataset.splits == split).sum()) for split in ("train", "val", "test")] == [112, 24, 24]
    apart = find_dataset(tmp_path / "m.csv")
    assert any(len(set(apart.splits[dataset.groups == group])) > 1 for group in set(dataset.groups))


def test_groups_across_given_splits_are_an_error(tmp_path):
    rows = [("cat", "train", "p1"), ("dog", "train", "p2"), ("cat", "test", "p1"), ("dog", "test", "p3")]
    write_groups(tmp_path, rows)
    message = r"groups that lie in several of the given splits: p1 \(1 group\); leave the splits out"
    with pytest.raises(UserError, match=message):
        find_dataset(tmp_path / "m.csv", fractions=(0.8, 0, 0.2), options=PATIENTS)


def test_a_validation_split_is_cut_by_group(tmp_path):
    rows = [("cat" if n % 2 else "dog", "train", f"p{n // 4}") for n in range(80)]
    write_groups(tmp_path, [*rows, ("cat", "test", "q"), ("dog", "test", "q")])
    dataset = find_dataset(tmp_path / "m.csv", options=PATIENTS)
    assert set(dataset.splits[dataset.groups == "q"]) == {"test"}
    assert int((dataset.splits == "val").sum()) in range(8, 21)
    for group in set(dataset.groups):
        assert len(set(dataset.splits[dataset.groups == group])) == 1


def test_too_few_groups_for_a_class_are_named(tmp_path):
    rows = [("cat", "", f"p{n}") for n in range(20)] + [("dog", "", "q")] * 10
    write_groups(tmp_path, rows)
    dataset = find_dataset(tmp_path / "m.csv", options=PATIENTS)
    assert dataset.listing.warnings == [
        f"too few groups: no images of dog in {split}" for split in ("test", "val")
    ]


def test_the_column_split_group_is_taken_for_groups(tmp_path):
    write_groups(tmp_path, [("ab"[index % 2], "", f"g{index // 2}") for index in range(12)])
    manifest = tmp_path / "m.csv"
    manifest.write_text(manifest.read_text().replace("patient", "split_group"))
    dataset = find_dataset(manifest)
    assert dataset.listing.columns["split_group"] == "group"
    assert len(np.unique(dataset.groups)) == 6
    for group in np.unique(dataset.groups):
        assert len(set(dataset.splits[dataset.groups == group])) == 1
