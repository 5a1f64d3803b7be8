"""Folders and values that name a split, and those that only look like it."""

from __future__ import annotations

import pytest

from skipnets.data.split_names import is_neutral, split_named, split_names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN2017", "train"),
        ("train_images", "train"),
        ("trainSet", "train"),
        ("entraînement", "train"),
        ("训练集", "train"),
        ("valid", "val"),
        ("dev", "val"),
        ("Validación", "val"),
        ("test-set", "test"),
        ("hold-out", "test"),
        ("тест", "test"),
        ("Träning", "train"),
        ("treningowe", "train"),
        ("обучающая_выборка", None),  # "the training sample": not every phrase is known
        ("trénovací", "train"),
        ("εκπαίδευση", "train"),
        ("validatie", "val"),
        ("Валідація", "val"),
        ("επικύρωση", "val"),
        ("testaus", "test"),
        ("essai", "test"),
        ("اختبار", "test"),
        ("trainer", None),
        ("latest", None),
        ("testimonial", None),
        ("train_val", None),
        ("cats", None),
        ("2", None),
        ("", None),
    ],
)
def test_a_single_name(name: str, split: str | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("seg_train", "seg_test"), {"seg_train": "train", "seg_test": "test"}),
        (("train_station", "test_tube"), {}),
        (("train", "test", "labels"), {"train": "train", "test": "test"}),
        (("a_train", "b_train"), {}),
    ],
)
def test_siblings(names: tuple[str, ...], expected: dict[str, str]) -> None:
    assert split_names(names) == expected


def test_names_that_say_nothing() -> None:
    assert all(map(is_neutral, ("images", "data", "dataset2", "cropped-images")))
    assert not any(map(is_neutral, ("cats", "123", "", "cat images")))
