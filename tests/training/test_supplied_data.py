from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

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
        ([], "must be of one size, not none"),
        ([("a.png", "a")], r"dataset\[0\] must be a PIL image, an array or a tensor, not str"),
        ([(GRAY.astype(np.float32), "a")], "normalization and augmentation are the run's"),
        ([(GRAY, 1), (GRAY, 0.5)], "label 0.5 must be a class; numbers to predict take an ImageDataset"),
        ([(GRAY[None, None, None], "a")], r"of shape \(1, 1, 1, 8, 8\)"),
    ],
)
def test_what_cannot_be_used_is_one_line(samples: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_dataset(samples)


def test_labels_are_positions_in_the_classes() -> None:
    class Named(list[tuple[Any, int]]):
        classes = ("cat", "dog")

    assert as_dataset(Named([(GRAY, 1)])).labels.tolist() == [1]
    with pytest.raises(UserError, match="label 2 must be a number from 0 to 1"):
        as_dataset(Named([(GRAY, 2)]))
