"""Probabilities from a network's logits.

Shapes: N images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_FINITE", "logit", "sigmoid", "softmax"]

NOT_FINITE = "the network's outputs are not finite: its weights or its preprocessing are wrong"


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, classes) logits → probabilities, in float64 so that high ones are not rounded to 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted / temperature)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def logit(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What `sigmoid` makes the probabilities of, elementwise; -inf of 0 and inf of 1."""
    doubled = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):
        difference: NDArray[np.float64] = np.log(doubled) - np.log1p(-doubled)
    return difference


def sigmoid(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, labels) logits → probabilities of each label, which do not depend on one another, in float64."""
    scaled = logits.astype(np.float64) / temperature
    smaller = np.exp(-np.abs(scaled))  # never above 1, so that nothing overflows
    probabilities: NDArray[np.float64] = np.where(scaled >= 0, 1, smaller) / (1 + smaller)
    return probabilities
