from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.rows import make_row

from skipnets.training.best_epoch import Resolution, best_row
from skipnets.training.config import BestBy


def resolution(images: int) -> Resolution:
    return Resolution(images, 1 / images)


def test_by_other_metrics_the_best_epoch_and_its_ties() -> None:
    rows = [
        dataclasses.replace(
            make_row(epoch, loss=loss), val_average_precision=precision, val_mae=1 - precision
        )
        for epoch, (precision, loss) in enumerate(
            [(0.6, 0.1), (0.9, 0.6), (0.9, 0.4), (0.9, 0.4), (0.89, 0.05)], 1
        )
    ]
    assert best_row(rows, "average-precision", resolution(10)) == rows[2]
    assert best_row(rows, "mae", resolution(10)) == rows[2]
    assert best_row(rows, "loss", resolution(10)) == rows[4]
    assert best_row([], "accuracy", resolution(10)) is None


@pytest.mark.parametrize(
    ("images", "kept"),
    [
        (10, 4),  # 0.8 ± 0.126
        (100, 3),  # 0.8 ± 0.040
        (1000, 2),  # 0.8 ± 0.013
        (100_000, 1),  # 0.8 ± 0.001
    ],
)
def test_the_latest_epoch_within_a_standard_error_of_the_best_accuracy(images: int, kept: int) -> None:
    accuracies = [0.8, 0.79, 0.765, 0.68, 0.65]
    rows = [make_row(epoch, accuracy=accuracy) for epoch, accuracy in enumerate(accuracies, 1)]
    assert best_row(rows, "accuracy", resolution(images)) == rows[kept - 1]


@pytest.mark.parametrize("images", [10, 212, 100_000])
def test_one_image_chooses_nothing(images: int) -> None:
    right = [images, images - 2, images - 1, images - 2]
    rows = [
        make_row(epoch, accuracy=float(np.float32(count / images))) for epoch, count in enumerate(right, 1)
    ]
    assert best_row(rows, "accuracy", resolution(images)) == rows[2]


def test_of_ten_images_one_that_was_right_by_luck_chooses_nothing() -> None:
    rows = [make_row(epoch, accuracy=accuracy) for epoch, accuracy in enumerate([0.1, 0.0, 0.1, 0.0, 0.0], 1)]
    assert best_row(rows, "accuracy", resolution(10)) == rows[-1]


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=12, max_size=12),
    st.sampled_from(["accuracy", "loss"]),
)
def test_only_a_new_epoch_takes_the_place_of_the_best(
    right: list[int], losses: list[float], by: BestBy
) -> None:
    """So its model can be written at once, and no other has to be kept."""
    rows = [
        make_row(epoch, loss=loss, accuracy=count / 20)
        for epoch, (count, loss) in enumerate(zip(right, losses, strict=False), 1)
    ]
    before = None
    for count in range(1, len(rows) + 1):
        best = best_row(rows[:count], by, resolution(20))
        assert best in (before, rows[count - 1])
        before = best


def test_every_image_right_with_float32s_rounding() -> None:
    rows = [make_row(1, accuracy=1.0000001192092896), make_row(2, accuracy=0.5)]
    assert best_row(rows, "balanced-accuracy", resolution(10)) == rows[0]


def test_the_resolution_of_a_balanced_accuracy() -> None:
    """Against the standard deviation of simulated balanced accuracies."""
    labels = np.repeat([0, 1, 2], [200, 20, 5])
    assert Resolution.of(labels, "accuracy") == Resolution(225, 1 / 225)
    assert Resolution.of(np.zeros((7, 3), int), "balanced-accuracy") == Resolution(7, 1 / 7)
    generator = np.random.default_rng(0)
    right = generator.random((20_000, len(labels))) < 0.7
    balanced = np.mean([right[:, labels == label].mean(1) for label in range(3)], axis=0)
    found = Resolution.of(labels, "balanced-accuracy")
    assert (0.7 * 0.3 / found.images) ** 0.5 == pytest.approx(balanced.std(), rel=0.03)
    assert found.step == pytest.approx(1 / 15)  # an image of the class of five


def test_one_image_of_a_rare_class_chooses_nothing() -> None:
    labels = np.repeat([0, 1, 2], [50, 50, 2])
    rows = [make_row(epoch, balanced=value) for epoch, value in enumerate([1.0, 5 / 6, 0.82], 1)]
    assert best_row(rows, "balanced-accuracy", Resolution.of(labels, "balanced-accuracy")) == rows[1]
