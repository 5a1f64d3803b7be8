"""Number formats of inference, and whether half precision keeps a network's labels.

Shapes: N batch, K classes.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, near_matches
from skipnets.probabilities import softmax

__all__ = ["PRECISIONS", "HalfPrecisionCheck", "check_precision"]

_LOG = logging.getLogger("skipnets")

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
"""As in training. "auto" takes half precision on a CUDA device where it keeps the labels."""

CHECKED_IMAGES = 64
"""How many images are compared before half precision is taken."""

LARGEST_DIFFERENCE = 0.01
"""Between two probabilities of an image."""


class HalfPrecisionCheck:
    """Compares half precision with float32 on the first images that a network sees.

    Args:
        precision: The half precision in question.

    Attributes:
        images: Number of images compared so far.
        other_labels: How many of them have another label.
        largest_difference: Between two probabilities.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.images = 0
        self.other_labels = 0
        self.largest_difference = 0.0

    def add(self, exact: NDArray[np.float32], half: NDArray[np.float32]) -> str | None:
        """Compare the logits (N, K) of a batch.

        Returns:
            The precision to compute in from now on, which is said in the log; None while it is undecided.
        """
        difference = np.abs(softmax(exact) - softmax(half)).max(initial=0.0)
        self.images += len(exact)
        self.other_labels += int((exact.argmax(1) != half.argmax(1)).sum())
        self.largest_difference = max(self.largest_difference, float(difference))
        found = (
            f"{self.other_labels} of {self.images} images get another label, probabilities differ by up to "
        )
        found += f"{self.largest_difference:.2g}"
        # Also where a value is no number: it compares as False.
        if self.other_labels or not self.largest_difference <= LARGEST_DIFFERENCE or np.isnan(difference):
            _LOG.info("computing in float32: in %s %s", self.precision, found)
            return "32-true"
        if self.images < CHECKED_IMAGES:
            return None
        _LOG.info("computing in %s: %s; --precision 32-true computes in float32", self.precision, found)
        return self.precision


def check_precision(precision: str, *, device: str) -> None:
    """Check that a precision is known, and that a device computes in it.

    Args:
        precision: One of `PRECISIONS`.
        device: Its type: "cpu", "cuda", "mps".

    Raises:
        UserError: If it is not.
    """
    if precision not in PRECISIONS:
        near = near_matches(precision, PRECISIONS)
        raise UserError(f"precision={precision}: must be one of {', '.join(PRECISIONS)}{near}")
    if precision == "16-mixed" and device == "cpu":
        raise UserError("precision=16-mixed: needs a GPU; on a CPU take 32-true or bf16-mixed")
