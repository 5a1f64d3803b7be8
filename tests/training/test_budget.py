from __future__ import annotations

import math

import pytest

from skipnets.training.budget import corrected_epochs, ends_at, plan_epochs, progress


@pytest.mark.parametrize(
    ("train", "val", "affordable", "epochs", "images"),
    [
        (1000, 0, 30_500, 30, 1000),  # whole passes
        (1000, 300, 33_000, 30, 1000),  # 1,100 an epoch with validation
        (100, 0, 100_000, 100, 1000),  # ten passes an epoch: not more than 100 epochs
        (50_000, 0, 100_000, 4, 25_000),  # half a pass an epoch: not less than four
        (50_000, 3000, 104_000, 4, 25_000),
        (1000, 3000, 60_000, 6, 9000),  # validation takes at most a tenth
        (100, 10, 0, 4, 2),  # no time at all
    ],
)
def test_epochs_fill_the_time(train: int, val: int, affordable: int, epochs: int, images: int) -> None:
    plan = plan_epochs(train, val, seconds_per_image=0.5, seconds=0.5 * affordable)
    assert (plan.epochs, plan.images) == (epochs, images)


def test_progress_is_even_between_changes_of_plan_and_complete_at_the_end() -> None:
    assert [progress(epoch, [(0, 4)]) for epoch in (0, 1, 3.5, 4, 5)] == [0, 0.25, 0.875, 1, 1]
    plan = [(0, 10), (5, 7), (6, 10)]
    assert progress(5, plan) == 0.5
    assert progress(6, plan) == 0.75
    assert progress(8, plan) == pytest.approx(0.875)
    assert progress(10, plan) == 1
    assert progress(3, [(0, 8), (2, 2)]) == 1


@pytest.mark.parametrize(
    ("done", "planned", "seconds_left", "expected"),
    [
        (1, 10, 90, 10),
        (1, 10, 45, 5),
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


def test_the_end_is_a_time_of_day() -> None:
    text = ends_at(125)
    assert text.startswith("ends at ")
    assert text.endswith(", in 2 min 5 s")
    assert math.isclose(len(text), len("ends at 12:00:00, in 2 min 5 s"))
