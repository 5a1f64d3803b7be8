"""Tables of images and labels: whatever wrote them, they end in the right images or in one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.helpers.folders import found, image_bytes, plant
from tests.helpers.manifests import FOUR, ROWS, Case, check_manifest, opened, table, write_manifest

from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError

CASES = {
    "splits": Case(
        "m.csv",
        table("path,label,split", "Training", "validation", "Training", "test"),
        "train: cat 1, dog 1; val: cat 1; test: dog 1",
        ("in train but not in test", "in train but not in val"),
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
    "one file as two paths with two labels": Case(
        "m.csv",
        table("path,label") + "./a.png,dog\n",
        r"error: lists a\.png twice, with label 'cat' and 'dog'; several labels .* one row, such as cat\|dog",
    ),
    "two splits": Case(
        "m.csv",
        "path,label,split\na.png,cat,train\na.png,cat,test\n",
        "error: lists a.png twice, with split 'train' and 'test'",
    ),
    "no such split": Case(
        "m.csv", "path,label,split\na.png,cat,fold1\n", "error: line 2: split='fold1': must name"
    ),
    "no label": Case(
        "m.csv", "path,label\na.png,cat\nb.png, \n", "error: line 3: label is empty, as in 1 row"
    ),
    "a header alone": Case("m.csv", "path,label\n", "error: lists no images"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_manifest(tmp_path, case):
    check_manifest(tmp_path, case)


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
        opened(write_manifest(tmp_path, header, [row[: len(header)] for row in rows]), **options)


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
