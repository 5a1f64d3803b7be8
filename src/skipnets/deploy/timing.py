"""Timing candidates in turn, so that whatever else the machine does hits all of them alike.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidate", "Predict", "Timing", "alternate"]

LEAST_ROUNDS = 5
_PAUSE = 0.02  # seconds; runtimes let their threads spin for up to a few milliseconds after a call
Batch = NDArray[np.float32]
Predict = Callable[[Batch], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of every timed call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the calls were faster than the first, a quarter slower than the second."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def ratio(self, other: Timing) -> float:
        """This time to another's of the same rounds: the middle one of the rounds' own ratios.

        What slows a whole round down is in both and cancels.
        """
        return statistics.median(own / base for own, base in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that turns a preprocessed batch (N, C, H, W) into logits (N, K).

    Attributes:
        name: What the table calls it.
        predict: Runs it.
        baseline: Whether a user would have it without this project.
        precision: "fp32" or "int8".
    """

    name: str
    predict: Predict
    baseline: bool = False
    precision: str = "fp32"


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, rounds: int | None = None
) -> dict[str, Timing]:
    """Time each candidate in turn, round after round, in another order each round.

    A turn is a pause, one run to warm up and one that is timed. Without the pause the threads of the one
    before would still spin and take the processor away, and what is quick would look slow; the order changes
    because caches are full of the one before, too.

    Args:
        candidates: By name.
        seconds: How long all of it may take; at least `LEAST_ROUNDS` rounds are done.
        rounds: How many rounds, whatever they take.
    """
    for run in candidates.values():
        run()
    timed: dict[str, list[float]] = {name: [] for name in candidates}
    names, order = list(candidates), random.Random(0)  # noqa: S311 - nothing is secret about turns
    end = time.perf_counter() + seconds
    done = 0
    while done < (rounds or LEAST_ROUNDS) or (rounds is None and time.perf_counter() < end):
        order.shuffle(names)
        for name in names:
            run = candidates[name]
            time.sleep(_PAUSE)
            run()
            start = time.perf_counter()
            run()
            timed[name].append(time.perf_counter() - start)
        done += 1
    return {name: Timing(seconds=tuple(values)) for name, values in timed.items()}
