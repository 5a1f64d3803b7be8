from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset, random_split
from torchvision.datasets import ImageFolder

from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import Listing
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.training import TrainConfig
from skipnets.training.supplied_data import as_dataset, given_dataset

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_torchvision_s_folder_gives_the_images_of_ours(digits_folder: Path) -> None:
    given = as_dataset(ImageFolder(str(digits_folder)))
    ours = open_dataset(digits_folder)
    assert given.classes == ours.classes
    np.testing.assert_array_equal(given.labels, ours.labels)
    for index in (0, 50, 119):
        pixels = np.asarray(ours.open(index).convert("RGB"))
        np.testing.assert_array_equal(given.source(index), pixels)
    assert set(given.splits) == {""}


@pytest.mark.parametrize(
    "image",
    [
        GRAY,
        GRAY[:, :, None],
        Image.fromarray(GRAY),
        torch.from_numpy(GRAY),
        torch.from_numpy(GRAY)[None],
        torch.from_numpy(GRAY / 255.0),
    ],
)
def test_an_image_may_have_any_of_the_usual_forms(image: Any) -> None:
    dataset = as_dataset([(image, "a"), (image, "b")])
    assert dataset.images is not None
    np.testing.assert_array_equal(dataset.images, [GRAY, GRAY])


def test_splits_that_are_given_stay_and_missing_ones_are_drawn() -> None:
    samples = [(GRAY, label) for label in "ab" * 20]
    config = TrainConfig(data="x", out=Path("x"))
    dataset = given_dataset(config, {"train": samples, "test": samples[:4]})
    assert [int((dataset.splits == name).sum()) for name in ("train", "val", "test")] == [32, 8, 4]
    assert dataset.names[-1] == "test/00003"
    with pytest.raises(UserError, match="dataset: has no splits dev"):
        as_dataset({"dev": samples})


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(GRAY, "a"), (GRAY[:4], "b")], "must be of one size, not 4×8, 8×8"),
        ([], "holds no images"),
        ([("a.png", "a")], r"dataset\[0\] must be a PIL image, an array or a tensor, not str"),
        ([(GRAY.astype(np.float32), "a")], "normalization and augmentation are the run's"),
        ([(GRAY, 1), (GRAY, 0.5)], "label 0.5 must be a class; numbers to predict take an ImageDataset"),
        ([(GRAY[None, None, None], "a")], r"of shape \(1, 1, 1, 8, 8\)"),
        ([(GRAY, "a", "a.png")], r"dataset\[0\] must be \(image, label\), not tuple of 3"),
        ([{"image": GRAY, "label": "a"}], r"dataset\[0\] must be \(image, label\), not dict"),
        ([(GRAY, np.array([0, 1]))], "a label must be a class, its number or name, not ndarray"),
        ([(GRAY, None)], "a label must be a class, its number or name, not NoneType"),
        (iter([(GRAY, "a")]), "must be a sequence .* with a length, not list_iterator"),
        (DataLoader([]), "must be a sequence .* with a length, such as its dataset, not DataLoader"),
        (ConcatDataset([TensorDataset(torch.zeros(1, 8, 8))]), r"dataset\[0\] must be .*, not tuple of 1"),
    ],
)
def test_what_is_no_image_with_a_label_is_one_line(samples: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_dataset(samples)


class Failing:
    classes = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index:
            raise OSError("the disk\nis gone")
        return GRAY, index


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (Failing(), r"dataset\[1\] fails \(the disk is gone\)"),
    ],
)
def test_what_cannot_be_used_is_one_line(samples: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_dataset(samples)


@pytest.mark.parametrize("label", [1, True, 1.0, np.int64(1), np.array([1]), torch.tensor(1), "b"])
def test_a_label_may_have_any_of_the_usual_forms(label: Any) -> None:
    class Two(list[tuple[Any, Any]]):
        classes = ("a", "b")

    assert as_dataset(Two([(GRAY, label)])).labels.tolist() == [1]


def test_numbers_without_names_keep_their_order_and_parts_the_names() -> None:
    """Outputs are in the order of numbers, as a loss with weights of the classes expects."""
    dataset = as_dataset([(GRAY, number) for number in (10, 2, 0, 11, 1)])
    assert dataset.classes == ("0", "1", "2", "10", "11")
    assert dataset.labels.tolist() == [3, 2, 0, 4, 1]

    class Named(list[tuple[Any, int]]):
        classes = ("cat", "dog")

    parts = random_split(Named([(GRAY, number % 2) for number in range(8)]), [6, 2])
    assert as_dataset({"train": parts[0], "val": parts[1]}).classes == ("cat", "dog")


@pytest.mark.parametrize("first", ["train", "test"])
def test_numbers_are_those_of_the_classes_that_another_split_names(first: str) -> None:
    class Named(list[tuple[Any, int]]):
        classes = ("cat", "dog", "owl")

    parts: dict[str, Any] = {
        "train": Named([(GRAY, 2), (GRAY, 0)]),
        "test": [(GRAY, 1), (GRAY, np.int64(2)), (GRAY, "cat")],
    }
    dataset = as_dataset(dict(sorted(parts.items(), key=lambda item: item[0] != first)))
    assert dataset.classes == ("cat", "dog", "owl")
    assert dataset.labels[dataset.splits == "train"].tolist() == [2, 0]
    assert dataset.labels[dataset.splits == "test"].tolist() == [1, 2, 0]
    for label in (3, -1, np.int64(3), "bird"):
        shown = repr(label.item() if isinstance(label, np.int64) else label)
        message = rf"^dataset: test\[0\]: label {shown} must be a number from 0 to 2 or one of cat, dog, owl$"
        with pytest.raises(UserError, match=message):
            as_dataset(parts | {"test": [(GRAY, label)]})


def test_labels_are_positions_in_the_classes() -> None:
    class Named(list[tuple[Any, int]]):
        classes = ("cat", "dog")

    assert as_dataset(Named([(GRAY, 1)])).labels.tolist() == [1]
    with pytest.raises(UserError, match="label 2 must be a number from 0 to 1"):
        as_dataset(Named([(GRAY, 2)]))


def test_an_image_without_any_number_is_one_line(tmp_path: Path) -> None:
    dataset = ImageDataset(
        classes=("age",),
        names=["a", "b", "c"],
        labels=np.array([[1.0], [np.nan], [2.0]], np.float32),
        splits=np.array(["train", "train", "val"]),
        images=np.zeros((3, 8, 8), np.uint8),
        regression=True,
    )
    config = TrainConfig(data="x", out=tmp_path / "run")
    with pytest.raises(UserError, match=r"^dataset: 1 image without any number, such as b; leave them out$"):
        given_dataset(config, dataset)


def test_what_is_said_of_a_run_s_splits_does_not_stay_in_the_program_s_data_set() -> None:
    digits = open_dataset("digits")
    never = dataclasses.replace(
        digits, classes=("never",), labels=np.zeros((len(digits), 1), np.float32), listing=Listing()
    )
    for _ in range(2):
        found = given_dataset(TrainConfig(data="digits", out="run"), never)
        assert len(found.listing.warnings) == 3  # of each split
    assert not never.listing.warnings
