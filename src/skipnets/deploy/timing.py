"""Time candidates in turn, so that other load on the machine affects all of them alike.

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
    """Times of all calls, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median time of a call."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the times."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def ratio(self, other: Timing) -> float:
        """Median over rounds of the ratio of this time to another's.

        Load that slows down a whole round is in both times and cancels.
        """
        return statistics.median(own / base for own, base in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A function to time that turns a preprocessed batch (N, C, H, W) into logits (N, K).

    Attributes:
        name: Name in the table.
        predict: The function.
        baseline: Whether it is a baseline, available without this project.
        precision: "fp32" or "int8".
    """

    name: str
    predict: Predict
    baseline: bool = False
    precision: str = "fp32"


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, rounds: int | None = None
) -> dict[str, Timing]:
    """Time each candidate once per round, in random order.

    A turn is a pause, a warm-up run and a timed run. Without the pause, spinning threads of the previous
    candidate would still use the processor and make fast candidates look slow; the order changes because
    caches still hold the previous candidate's data.

    Args:
        candidates: Candidates by name.
        seconds: Total time; at least `LEAST_ROUNDS` rounds are run.
        rounds: Number of rounds, instead of `seconds`.
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
