from __future__ import annotations

import pytest

from skipnets.training.budget import corrected_epochs, finish_seconds, plan_epochs, recent_durations


@pytest.mark.parametrize(
    ("train", "val", "affordable", "epochs", "images"),
    [
        (1000, 0, 30_500, 30, 1000),  # whole passes
        (1000, 300, 33_000, 30, 1000),  # 1,100 an epoch with validation
        (100, 0, 100_000, 100, 1000),  # ten passes an epoch: not more than 100 epochs
        (50_000, 0, 100_000, 4, 25_000),  # half a pass an epoch: not less than four
        (50_000, 3000, 104_000, 4, 25_000),
        (1000, 3000, 60_000, 6, 9000),  # validation takes at most a tenth
        (100, 10, 0, 4, 32),  # no time at all: a batch an epoch
        (20, 10, 0, 4, 20),
        (50_000, 30_000, 25_000, 1, 15_000),  # a validation takes as long as 10,000 training images
        (50_000, 30_000, 70_000, 3, 13_333),
    ],
)
def test_epochs_fill_the_time(train: int, val: int, affordable: int, epochs: int, images: int) -> None:
    plan = plan_epochs(train, val, seconds_per_image=0.5, seconds=0.5 * affordable, batch_size=32)
    assert (plan.epochs, plan.images) == (epochs, images)


@pytest.mark.parametrize("val", [0, 3, 3000, 100_000])
@pytest.mark.parametrize("train", [16, 1000, 1_000_000])
def test_a_plan_fits_and_validation_leaves_time_to_train(train: int, val: int) -> None:
    for affordable in (10, 300, 5000, 90_000, 10_000_000):
        plan = plan_epochs(train, val, seconds_per_image=0.5, seconds=0.5 * affordable, batch_size=32)
        trained, validated = plan.epochs * plan.images, plan.epochs * val / 3
        assert plan.epochs >= 1
        if affordable < 2 * val / 3 + 32 * 4:  # too little for an epoch and its validation
            continue
        assert trained + validated <= 1.01 * affordable
        assert trained >= 0.45 * affordable


@pytest.mark.parametrize(
    ("done", "planned", "seconds_left", "expected"),
    [
        (1, 10, 90, 10),
        (1, 10, 45, 5),
        (1, 60, 550, 60),  # four less, of 59, are not worth a change
        (2, 5, 20, 5),  # nor is one, before the last two
        (3, 5, 10, 4),
        (1, 10, 89, 10),  # a little late is not worth an epoch
        (1, 10, 180, 19),
        (1, 10, 95, 10),
        (9, 10, 50, 10),  # the rate is nearly zero
        (5, 10, 0, 5),
        (10, 10, 50, 10),
    ],
)
def test_the_clock_corrects_the_number_of_epochs(
    done: int, planned: int, seconds_left: float, expected: int
) -> None:
    found = corrected_epochs(done=done, planned=planned, epoch_seconds=10, seconds_left=seconds_left)
    assert found == expected


def test_short_epochs_are_averaged_over_five_seconds() -> None:
    assert recent_durations([9.0]) == [9.0]
    assert recent_durations([9.0, *[2.0] * 5]) == [2.0] * 5
    assert recent_durations([9.0, *[0.5] * 20]) == [0.5] * 10
    assert recent_durations([0.1] * 20) == [0.1] * 20


@pytest.mark.parametrize(
    ("seconds_per_image", "seconds"),
    [(8e-5, 9.0), (2e-3, 14.0)],  # 0.5 ms to read a test image; half as long as a training image takes
)
def test_test_images_take_the_time_to_read_them_at_least(seconds_per_image: float, seconds: float) -> None:
    assert finish_seconds(10_000, seconds_per_image) == pytest.approx(seconds)
    assert finish_seconds(10_000, seconds_per_image, to_read=0.1) == pytest.approx(1004)  # photographs
