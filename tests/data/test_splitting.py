"""Which split each image gets, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from tests.helpers.folders import counts, folder, put
from tests.helpers.manifests import write_groups

from skipnets.data import open_dataset
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import Listing
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.splits import find_shares
from skipnets.data.splitting import deal_out
from skipnets.errors import UserError


def test_fractions_may_leave_a_split_out(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=2, b=10), fractions=(0.8, 0.2, 0))
    assert counts(dataset, "test") == {"a": 0, "b": 0}
    assert counts(dataset, "val") == {"a": 1, "b": 2}


def test_split_folders_are_kept(tmp_path):
    dataset = open_dataset(folder(tmp_path, train__a=3, train__b=1, val__a=1, val__b=1, test__b=2))
    assert counts(dataset, "train") == {"a": 3, "b": 1}
    assert counts(dataset, "val") == {"a": 1, "b": 1}
    assert counts(dataset, "test") == {"a": 0, "b": 2}


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({"test__a": 5, "test__b": 5}, {"train": 14, "val": 3, "test": 5}),
        ({"val__a": 5, "val__b": 5}, {"train": 14, "val": 5, "test": 3}),
        ({}, {"train": 12, "val": 2.5, "test": 2.5}),
    ],
)
def test_missing_splits_are_cut_from_train(tmp_path, present, expected):
    dataset = open_dataset(folder(tmp_path, train__a=17, train__b=17, **present))
    for split, count in expected.items():
        for got in counts(dataset, split).values():
            assert got == pytest.approx(count, abs=0.5)
    for name, split in zip(dataset.names, dataset.splits, strict=True):
        assert name.startswith((f"{split}/", "train/"))


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_a_class_missing_from_one_split_shifts_no_labels(tmp_path, lacking):
    folder(
        tmp_path,
        **{f"{s}__{c}": 3 for s in ("train", "val", "test") for c in "abc" if (s, c) != (lacking, "b")},
    )
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("a", "b", "c")
    for split in ("train", "val", "test"):
        part = dataset.split(split)
        assert part.classes == dataset.classes
        assert counts(part, split)["b"] == (0 if split == lacking else 3)
        for name, label in zip(part.names, part.labels, strict=True):
            assert name.split("/")[1] == "abc"[label]


def test_repeating_splits_is_strict(tmp_path, caplog):
    root = folder(tmp_path / "data", a=5, b=5)
    path = tmp_path / "splits.csv"
    dataset = open_dataset(root, seed=3)
    dataset.write_splits(path)
    put(root, "a/new.png")
    with caplog.at_level(logging.WARNING, "skipnets"):
        again = open_dataset(root, splits=path)
    assert "1 image that" in caplog.text
    assert again.names == dataset.names
    (root / "a/new.png").unlink()
    (root / "a/3.png").rename(root / "b/3_.png")
    with pytest.raises(UserError, match=r"splits\.csv: lists a/3\.png, which the data do not hold"):
        open_dataset(root, splits=path)
    path.write_text("path,label,split\nb/1.png,a,train\n")
    with pytest.raises(UserError, match=r"lists b/1\.png as 'a', which the data hold under another class"):
        open_dataset(root, splits=path)


def test_data_to_be_evaluated_is_not_dealt_out(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=1), fractions=None)
    assert dataset.classes == ("a",)
    assert dataset.splits.tolist() == ["test"]
    kept = open_dataset(folder(tmp_path / "more", train__a=1, val__a=1), fractions=None)
    assert sorted(kept.splits.tolist()) == ["train", "val"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no images; they must lie in .*/<class>/ or .*/train/<class>/"),
        ({"a": 0, "b": 0}, "holds no images"),
        ({"train__a": 0}, "holds no images; they must lie in .*/train/<class>/"),
        ({"a": 5}, 'holds one class only, "a"; telling classes apart takes two or more'),
        ({"a": 5, "b": 2}, 'class "b" has 2 images to be split into train, val, test; it takes at least 3'),
        ({"a": 1, "b": 2, "c": 9}, r'class "a" has 1 image .*\(and 1 more class has too few\).*: add images'),
        (
            {"train__a": 5, "train__b": 1, "test__a": 2},
            'class "b" has 1 image to be split into train, val;',
        ),
    ],
)
def test_too_little_data_is_one_line(tmp_path, content, message):
    folder(tmp_path, **content)
    for name, count in content.items():
        if count == 0:
            (tmp_path / name.replace("__", "/")).mkdir(parents=True)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_folder_without_images_is_a_class_with_too_few(tmp_path):
    folder(tmp_path, a=5, b=5)
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match='class "c" has 0 images'):
        open_dataset(tmp_path)


def test_too_few_images_of_a_misspelled_class_say_so(tmp_path):
    """The reason is in sight, not in a warning that the error has swallowed."""
    for label, count in (("cat", 6), ("Cat", 1), ("dog", 6)):
        for index in range(count):
            put(tmp_path, f"{label}/{index}.png")
    with pytest.raises(UserError, match=r'class "Cat" has 1 image .*"Cat", "cat" differ only in spelling'):
        open_dataset(tmp_path)


def test_a_large_val_is_made_smaller_and_a_note_says_so():
    count = 40_000
    large = ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.where(np.arange(count) < 4000, "test", "train"),
    )
    dealt = deal_out(large, find_shares("auto"), 0, "photos")
    assert np.bincount(dealt.split("val").labels).tolist() == [2500, 2500]
    assert len(dealt.split("test")) == 4000
    [note] = dealt.listing.notes
    assert note == (
        "val has 5,000 of 36,000 images, not 18%: enough to choose the best epoch "
        "(--fractions decides otherwise)"
    )
    given = deal_out(replace(large, listing=Listing()), find_shares((0.7, 0.15, 0.15)), 0, "photos")
    assert len(given.split("val")) == pytest.approx(36_000 * 15 / 85, abs=1)
    assert given.listing.notes == []


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
