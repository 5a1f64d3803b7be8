"""By how much int8 changes the numbers that a regression predicts.

Shapes: N images, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.scaling import TargetScale, unscaled
from skipnets.tables import number_text

__all__ = ["Agreement", "agreement_rows", "changes", "measure_agreement"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Numbers before and after quantization, on the validation images.

    Attributes:
        targets: Names of the T targets.
        change: (T,) mean absolute change of a prediction, in the target's unit.
        share: (T,) the same as a share of the target's standard deviation in the training images.
        mae_before: (T,) mean absolute error of the 32-bit graph; None where no number is known.
        mae_after: (T,) that of the 8-bit graph.
        count: Number N of validation images.
        accuracy_aware: Whether layers were kept in 32 bits to preserve the numbers.
    """

    targets: tuple[str, ...]
    change: tuple[float, ...]
    share: tuple[float, ...]
    mae_before: tuple[float | None, ...]
    mae_after: tuple[float | None, ...]
    count: int
    accuracy_aware: bool

    @property
    def drop(self) -> float:
        """The largest mean change of a target, in percent of its standard deviation."""
        return 100 * max(self.share)

    @property
    def cost(self) -> str:
        """What int8 costs, as the end of a sentence."""
        name = self.targets[int(np.argmax(self.share))]
        return f"{name} changes by {self.drop:.2f}% of its standard deviation on average"


def changes(before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, T) scaled numbers twice → (N, T) absolute changes, in standard deviations of the targets."""
    return np.abs(after.astype(np.float64) - before.astype(np.float64))


def measure_agreement(
    before: NDArray[np.floating[Any]],
    after: NDArray[np.floating[Any]],
    numbers: NDArray[np.floating[Any]],
    *,
    targets: Sequence[str],
    scales: Sequence[TargetScale],
) -> Agreement:
    """Compare the outputs of two graphs.

    Args:
        before: (N, T) scaled outputs of the 32-bit graph.
        after: (N, T) of the 8-bit graph.
        numbers: (N, T) what is right, in the targets' units; NaN where it is not known.
        targets: T names.
        scales: Of the targets.
    """
    share = changes(before, after).mean(0)
    errors = [
        tuple(
            float(np.abs(predicted[of] - true[of]).mean()) if (of := np.isfinite(true)).any() else None
            for predicted, true in zip(unscaled(outputs, scales).T, numbers.T, strict=True)
        )
        for outputs in (before, after)
    ]
    return Agreement(
        targets=tuple(targets),
        change=tuple((share * [scale.std for scale in scales]).tolist()),
        share=tuple(share.tolist()),
        mae_before=errors[0],
        mae_after=errors[1],
        count=len(before),
        accuracy_aware=False,
    )


def agreement_rows(agreement: Mapping[str, Any]) -> dict[str, str]:
    """Rows of a table, from the fields of an `Agreement`."""
    rows = {}
    for index, name in enumerate(agreement["targets"]):
        change, share, before, after = (
            agreement[field][index] for field in ("change", "share", "mae_before", "mae_after")
        )
        errors = "" if before is None else f"; MAE {number_text(before)} before, {number_text(after)} after"
        rows[f"int8, {name}"] = (
            f"changes by {number_text(change)} on average ({share:.2%} of its standard deviation){errors}, "
            f"on {agreement['count']:,} images"
        )
    return rows
