"""By how much int8 changes numbers: against the sums written out."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from skipnets.deploy.agreement import agreement_rows, changes, measure_agreement
from skipnets.scaling import TargetScale

SCALES = (TargetScale(mean=10.0, std=2.0), TargetScale(mean=1.0, std=0.5, grades=(0, 3)))


def test_changes_are_in_the_targets_units_and_errors_are_of_what_is_predicted() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(0, 1, (30, 2)).astype(np.float32)
    after = before + generator.normal(0, 0.1, (30, 2)).astype(np.float32)
    numbers = np.stack([generator.normal(10, 2, 30), np.rint(generator.uniform(0, 3, 30))], 1)
    numbers[:5, 0] = np.nan
    found = measure_agreement(before, after, numbers, targets=("age", "grade"), scales=SCALES)
    differences = [
        [abs(float(b) - float(a)) for b, a in zip(*pair, strict=True)]
        for pair in ((before[:, 0], after[:, 0]), (before[:, 1], after[:, 1]))
    ]
    shares = [sum(each) / 30 for each in differences]
    assert found.share == pytest.approx(shares)
    assert found.change == pytest.approx([2 * shares[0], 0.5 * shares[1]])
    assert found.drop == pytest.approx(100 * max(shares))
    assert found.cost.startswith(("age" if shares[0] > shares[1] else "grade") + " changes by ")
    ages = [
        abs(2 * float(value) + 10 - age) for value, age in zip(before[5:, 0], numbers[5:, 0], strict=True)
    ]
    assert found.mae_before[0] == pytest.approx(sum(ages) / 25)
    grades = np.clip(np.rint(0.5 * after[:, 1].astype(float) + 1), 0, 3)  # as they are predicted
    assert found.mae_after[1] == pytest.approx(np.abs(grades - numbers[:, 1]).mean())
    assert changes(before, after).shape == (30, 2)


def test_rows_say_what_changed_of_each_target() -> None:
    outputs = np.zeros((4, 2), np.float32)
    numbers = np.array([[10.0, np.nan]] * 4)
    rows = agreement_rows(
        asdict(measure_agreement(outputs, outputs + 0.1, numbers, targets=("age", "grade"), scales=SCALES))
    )
    assert rows == {
        "int8, age": "changes by 0.2 on average (10.00% of its standard deviation); MAE 0 before, 0.2 after, "
        "on 4 images",
        "int8, grade": "changes by 0.05 on average (10.00% of its standard deviation), on 4 images",
    }
