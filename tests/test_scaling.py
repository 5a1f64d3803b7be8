"""Scales of targets against scikit-learn's scaler, and grades."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from skipnets.errors import UserError
from skipnets.scaling import TargetScale, common_scales, scaled, unscaled


def test_scaling_is_scikit_learns() -> None:
    numbers = np.random.default_rng(0).normal((1e6, -3), (1e3, 0.2), (50, 2))
    scaler = StandardScaler().fit(numbers)
    scales = [TargetScale(mean=mean, std=std) for mean, std in zip(scaler.mean_, scaler.scale_, strict=True)]
    np.testing.assert_allclose(scaled(numbers, scales), scaler.transform(numbers))
    np.testing.assert_allclose(unscaled(scaled(numbers, scales), scales), numbers)
    # An output of float32 does not round the number that it stands for to float32.
    outputs = scaled(numbers, scales).astype(np.float32)
    np.testing.assert_allclose(unscaled(outputs, scales), scaler.inverse_transform(outputs.astype(float)))


def test_grades_are_whole_and_within_their_range() -> None:
    scale = TargetScale(mean=2.0, std=2.0, grades=(1, 4))
    outputs = np.array([[-5.0], [-0.3], [0.2], [0.3], [9.0]])
    assert unscaled(outputs, [scale])[:, 0].tolist() == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("grades", [None, (0, 4)])
def test_a_scale_is_written_and_read(grades: tuple[int, int] | None) -> None:
    scale = TargetScale(mean=1.5, std=0.1, grades=grades)
    assert TargetScale.from_dict(scale.to_dict()) == scale


@pytest.mark.parametrize(
    "changes",
    [
        {"std": 0.0},
        {"std": float("nan")},
        {"mean": float("inf")},
        {"mean": "1"},
        {"std": True},
        {"grades": (4, 0)},
        {"grades": (0, 1.5)},
        {"grades": (0, 1, 2)},
    ],
)
def test_impossible_scales_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^scales: {next(iter(changes))}="):
        TargetScale(**{"mean": 0.0, "std": 1.0} | changes)


def test_an_ensemble_knows_all_grades_of_its_members() -> None:
    first, second = (TargetScale(mean=2.0, std=1.0, grades=grades) for grades in ((0, 3), (1, 4)))
    plain = TargetScale(mean=7.0, std=2.0)
    joined = common_scales([(first, plain), (second, plain)])
    assert joined == (TargetScale(mean=2.0, std=1.0, grades=(0, 4)), plain)
    for other in (TargetScale(mean=2.5, std=1.0, grades=(0, 3)), TargetScale(mean=2.0, std=1.0)):
        with pytest.raises(UserError, match="members: must have the same mean and standard deviation"):
            common_scales([(first,), (other,)])
