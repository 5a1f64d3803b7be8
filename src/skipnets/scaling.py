"""How the targets of a regression are scaled for its network, and its outputs back to their units.

Shapes: N images, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["TargetScale", "common_scales", "scaled", "unscaled"]


@dataclass(frozen=True, kw_only=True)
class TargetScale:
    """The scale of one target.

    Args:
        mean: Of the training images; the network's output is 0 there.
        std: Standard deviation of the training images; one unit of the output.
        grades: Of an ordinal target, the lowest and the highest of its whole numbers, to which predictions
            are rounded; None of others.

    Raises:
        UserError: If they are not finite, `std` is not above 0, or the grades are in the wrong order.
    """

    mean: float
    std: float
    grades: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or (name == "std" and value <= 0):
                raise UserError(f"scales: {name}={value!r}: must be a {'positive ' * (name == 'std')}number")
        if self.grades is not None:
            whole = all(isinstance(each, int) and not isinstance(each, bool) for each in self.grades)
            if len(self.grades) != 2 or not whole or self.grades[0] >= self.grades[1]:
                raise UserError(f"scales: grades={self.grades!r}: must be the lowest and the highest number")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        grades = {} if self.grades is None else {"grades": list(self.grades)}
        return {"mean": self.mean, "std": self.std, **grades}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`.

        Raises:
            UserError: If the values are damaged.
        """
        if not isinstance(values, Mapping) or not {"mean", "std"} <= set(values):
            raise UserError(f"scales: {str(values)[:60]} must have a mean and a std")
        grades = values.get("grades")
        return cls(mean=values["mean"], std=values["std"], grades=None if grades is None else tuple(grades))


def scaled(targets: NDArray[np.floating[Any]], scales: Sequence[TargetScale]) -> NDArray[np.float64]:
    """(N, T) targets in their units → what the network learns: mean 0 and standard deviation 1."""
    means, stds = _columns(scales)
    return (np.asarray(targets, np.float64) - means) / stds


def unscaled(outputs: NDArray[np.floating[Any]], scales: Sequence[TargetScale]) -> NDArray[np.float64]:
    """(N, T) outputs of a network → targets in their units; ordinal ones as one of their grades."""
    means, stds = _columns(scales)
    values: NDArray[np.float64] = outputs.astype(np.float64) * stds + means
    for index, scale in enumerate(scales):
        if scale.grades is not None:
            values[:, index] = np.clip(np.rint(values[:, index]), *scale.grades)
    return values


def common_scales(members: Sequence[Sequence[TargetScale]]) -> tuple[TargetScale, ...]:
    """The scales of an ensemble: those of its networks, with all grades that one of them has learned.

    Args:
        members: (E, T) the scales of each network.

    Raises:
        UserError: If means or standard deviations differ, so that outputs cannot be averaged.
    """
    joined = []
    for scales in zip(*members, strict=True):
        first = scales[0]
        if any((scale.mean, scale.std) != (first.mean, first.std) for scale in scales) or (
            len({scale.grades is None for scale in scales}) > 1
        ):
            raise UserError(
                "members: must have the same mean and standard deviation of each target (target_mean, "
                "target_std; those of the training images differ unless the runs have one splits.csv), and "
                "grades all or none"
            )
        grades = [scale.grades for scale in scales if scale.grades is not None]
        lowest_and_highest = (
            (min(low for low, _ in grades), max(high for _, high in grades)) if grades else None
        )
        joined.append(replace(first, grades=lowest_and_highest))
    return tuple(joined)


def _columns(scales: Sequence[TargetScale]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([scale.mean for scale in scales]), np.array([scale.std for scale in scales])
