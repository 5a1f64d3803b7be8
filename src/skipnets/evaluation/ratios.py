"""Ratios and means of arrays: NaN, and no warning, where there is nothing to compute them from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["defined_mean", "ratio"]


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """`part / whole`, elementwise; NaN where the whole is not above 0."""
    undefined = np.full(np.shape(part), np.nan)
    quotient: NDArray[np.float64] = np.divide(part, whole, out=undefined, where=whole > 0)
    return quotient


def defined_mean(values: NDArray[np.floating[Any]]) -> float:
    """The mean of all finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
