"""Folds hold out every image once, keep groups and copies together, and leave test images out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skipnets.data.copies import Copy
from skipnets.data.dataset import ImageDataset
from skipnets.data.folds import deal_out_folds, read_folds
from skipnets.data.splits import Shares
from skipnets.errors import UserError

SHARES = Shares({"train": 0.7, "val": 0.15})


def dataset(
    labels: list[int],
    *,
    splits: list[str] | None = None,
    groups: list[str] | None = None,
    copies: tuple[Copy, ...] = (),
) -> ImageDataset:
    count = len(labels)
    return ImageDataset(
        classes=("a", "b"),
        names=[f"{index:03}" for index in range(count)],
        labels=np.array(labels, dtype=np.int64),
        splits=np.array(splits or [""] * count, dtype="<U5"),
        images=np.random.default_rng(0).integers(0, 256, (count, 4, 4), dtype=np.uint8),
        groups=None if groups is None else np.array(groups),
        copies=copies,
    )


def test_every_image_is_held_out_once() -> None:
    folds = deal_out_folds(dataset([0] * 20 + [1] * 10), 5, 0, "data")
    assert [np.bincount(folds.dataset.labels[folds.numbers == k]).tolist() for k in range(1, 6)] == [
        [4, 2]
    ] * 5
    for number in range(1, 6):
        fold = folds.fold(number, SHARES, 0, "data")
        held_out = {folds.dataset.names[i] for i in np.flatnonzero(folds.numbers == number)}
        assert set(fold.split("test").names) == held_out
        assert [len(fold.split(name)) for name in ("train", "val", "test")] == [20, 4, 6]


def test_the_seed_decides() -> None:
    images = dataset([0] * 20 + [1] * 20)
    first, same, other = (deal_out_folds(images, 4, seed, "data").numbers for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_test_images_stay_out_and_the_given_val_is_dealt_out_too() -> None:
    splits = ["train"] * 8 + ["val"] * 8 + ["test"] * 8
    folds = deal_out_folds(dataset([0, 1] * 12, splits=splits), 2, 0, "data")
    assert (folds.numbers > 0).tolist() == [split != "test" for split in splits]
    assert folds.dataset.splits.tolist() == ["train"] * 16 + ["test"] * 8
    assert "train and val are dealt out to the folds together" in folds.dataset.listing.notes
    assert len(folds.fold(1, SHARES, 0, "data")) == 16


def test_groups_and_copies_stay_together() -> None:
    groups = [str(index // 4) for index in range(48)]
    copies = (Copy(0, 47, True, 0.0),)
    folds = deal_out_folds(dataset([0, 1] * 24, groups=groups, copies=copies), 3, 0, "data")
    fold_of = {group: set(folds.numbers[np.array(groups) == group].tolist()) for group in groups}
    assert all(len(numbers) == 1 for numbers in fold_of.values())
    assert fold_of["0"] == fold_of["11"]
    for number in (1, 2, 3):
        fold = folds.fold(number, SHARES, 0, "data")
        homes = {}
        for group, split in zip(fold.groups, fold.splits, strict=True):
            homes.setdefault(group, set()).add(str(split))
        assert all(len(splits) == 1 for splits in homes.values())
    without_groups = deal_out_folds(dataset([0, 1] * 24, copies=(Copy(0, 46, True, 0.0),)), 3, 0, "data")
    assert without_groups.numbers[0] == without_groups.numbers[46] > 0


def test_images_without_a_group_are_not_a_group() -> None:
    groups = ["p", "p", "q", "q", *[""] * 20]
    folds = deal_out_folds(dataset([0, 1] * 12, groups=groups), 2, 0, "data")
    assert len(set(folds.numbers[4:].tolist())) == 2


def test_folds_are_read_again_as_they_were_written(tmp_path: Path) -> None:
    images = dataset([0, 1] * 12, splits=[""] * 20 + ["test"] * 4)
    folds = deal_out_folds(images, 2, 0, "data")
    folds.write(tmp_path / "splits.csv")
    again = read_folds(images, tmp_path / "splits.csv", 2, missing="error")
    np.testing.assert_array_equal(again.numbers, folds.numbers)
    assert again.dataset.splits.tolist() == folds.dataset.splits.tolist()
    fewer = images.select(np.arange(1, 24))
    assert len(read_folds(fewer, tmp_path / "splits.csv", 2, missing="skip").numbers) == 23
    with pytest.raises(UserError, match=r"lists 000, which the data do not hold; --missing skip"):
        read_folds(fewer, tmp_path / "splits.csv", 2, missing="error")
    with pytest.raises(UserError, match=r"must have a column fold with the numbers from 1 to 3"):
        read_folds(images, tmp_path / "splits.csv", 3, missing="error")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (dataset([0] * 9 + [1] * 3), r'^folds=4: data has classes with fewer images than folds: "b" has 3$'),
        (dataset([0, 1] * 9, groups=["p", "q", "r"] * 6), r"^folds=4: data has 3 groups only$"),
        (
            dataset([0] * 9 + [1] * 9, groups=list("abcdefghi") + ["j"] * 9),
            r'^folds=4: all images of class "b" are of one group',
        ),
        (
            dataset([0, 1] * 6, splits=["test"] * 2 + [""] * 10, groups=["p"] * 4 + list("abcdefgh")),
            r"^groups that lie in several of the given splits: p \(1 group\)",
        ),
    ],
)
def test_too_little_data_is_one_clear_line(images: ImageDataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        deal_out_folds(images, 4, 0, "data")


def test_a_class_with_few_groups_is_a_warning() -> None:
    groups = list("abcdefghij") + ["k", "l"] * 5
    folds = deal_out_folds(dataset([0] * 10 + [1] * 10, groups=groups), 3, 0, "data")
    assert 'classes with fewer groups than folds, which are missing in some folds: "b" has 2' in (
        folds.dataset.listing.warnings
    )


def labeled(labels: list[list[float]], groups: list[str] | None = None) -> ImageDataset:
    return replace(
        dataset([0] * len(labels), groups=groups), labels=np.array(labels, np.float32), classes=("a", "b")
    )


def test_images_with_several_labels_are_held_out_once_with_their_patients(tmp_path: Path) -> None:
    nan = float("nan")
    marks = [[index % 2, nan if index % 5 == 0 else index % 3 == 0] for index in range(60)]
    images = labeled(marks, [f"p{index // 2}" for index in range(60)])
    folds = deal_out_folds(images, 3, 0, "data")
    assert not images.listing.warnings
    assert np.bincount(folds.numbers).tolist() == [0, 20, 20, 20]
    assert (folds.numbers[::2] == folds.numbers[1::2]).all()
    for number in range(1, 4):
        fold = folds.fold(number, SHARES, 0, "data")
        assert set(fold.split("test").names) == {
            images.names[i] for i in np.flatnonzero(folds.numbers == number)
        }
        assert {len(fold.split(name)) > 0 for name in ("train", "val")} == {True}
    folds.write(tmp_path / "splits.csv")
    again = read_folds(images, tmp_path / "splits.csv", 3, missing="error")
    np.testing.assert_array_equal(again.numbers, folds.numbers)


def test_rare_labels_are_named_and_too_few_groups_refused() -> None:
    images = labeled([[1, 1]] * 2 + [[0, 1]] * 18)
    deal_out_folds(images, 5, 0, "data")
    assert images.listing.warnings == [
        f"labels that are {state} in fewer images than there are folds, so some tell nothing of them: {few}"
        for state, few in (("present", '"a" in 2'), ("absent", '"b" in 0'))
    ]
    with pytest.raises(UserError, match=r"^folds=5: data has 4 groups only$"):
        deal_out_folds(labeled([[1, 0]] * 8, [f"p{index // 2}" for index in range(8)]), 5, 0, "data")


def test_numbers_are_dealt_out_by_the_parts_of_their_range() -> None:
    numbers = np.random.default_rng(0).normal(size=(120, 1))
    groups = [f"g{index // 2}" for index in range(120)]
    images = replace(dataset([0] * 120, groups=groups), labels=numbers, classes=("age",), regression=True)
    folds = deal_out_folds(images, 3, 0, "data")
    order = np.argsort(numbers[:, 0])
    for part in np.split(folds.numbers[order], 6):  # of 20 images each, in groups of two
        assert np.bincount(part, minlength=4)[1:].min() >= 4
    assert all(len(set(folds.numbers[np.array(groups) == group])) == 1 for group in set(groups))
    with pytest.raises(UserError, match="folds=61: data has 60 groups only"):
        deal_out_folds(images, 61, 0, "data")
