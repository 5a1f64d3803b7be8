"""Chooses a kernel's tile sizes by measuring them, once for each kind of problem on each kind of card.

What was chosen is kept in a file of the user's cache folder, so that the next process need not measure.
Without a GPU (Triton's interpreter) the first candidate is taken.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import triton

from skipnets.ops.choices import ChoiceFile, cache_folder

logger = logging.getLogger("skipnets")

Config = Mapping[str, int]
"""A kernel's tile sizes, `num_warps`, `num_stages`, and `waves`: programs for each multiprocessor."""

_WARMUP, _REPEATS = 2, 8
_SECONDS_BETWEEN_REPORTS = 5


class Tuner:
    """Finds the fastest of a kernel's configurations for a problem; safe to use from several threads."""

    def __init__(self, path: Path | None) -> None:
        self._file = ChoiceFile(path)
        self._lock = threading.Lock()
        self._started: float | None = None
        self._reported = 0.0
        self.timings: dict[str, list[tuple[dict[str, int], float]]] = {}

    def choose(
        self,
        kernel: str,
        problem: tuple[object, ...],
        candidates: tuple[Config, ...],
        run: Callable[[Config], object],
        device: torch.device,
    ) -> Config:
        """The fastest candidate.

        Args:
            kernel: Its name.
            problem: What the choice depends on, apart from the card.
            candidates: To be measured, likely ones first.
            run: Launches the kernel; what it writes must not depend on how often it is run.
            device: Where.
        """
        with self._lock:
            left = self._left(kernel, problem, candidates, device)
            if len(left) == 1:
                return left[0]
            key = _key(kernel, problem, device)
            timings = [(dict(candidate), _milliseconds(run, candidate)) for candidate in left]
            self.timings[key] = timings
            best, milliseconds = min(timings, key=lambda timing: timing[1])
            if milliseconds == float("inf"):
                raise RuntimeError(f"none of the configurations of {kernel} runs on this card")
            self._file.put(key, best)
            self._report()
            return best

    def left(
        self,
        kernel: str,
        problem: tuple[object, ...],
        candidates: tuple[Config, ...],
        device: torch.device,
    ) -> tuple[Config, ...]:
        """The candidates that are still to be measured, or the one that was chosen.

        Args:
            kernel: As for `choose`, and so are the others.
            problem: What the choice depends on.
            candidates: All.
            device: Where.
        """
        with self._lock:
            return self._left(kernel, problem, candidates, device)

    def _left(
        self,
        kernel: str,
        problem: tuple[object, ...],
        candidates: tuple[Config, ...],
        device: torch.device,
    ) -> tuple[Config, ...]:
        if device.type != "cuda" or len(candidates) == 1:
            return candidates[:1]
        chosen = self._file.get(_key(kernel, problem, device))
        if chosen in candidates:  # Not one of another version: buffers are made for these.
            return (chosen,)
        if self._started is None:
            self._started = self._reported = time.monotonic()
            logger.info(
                "compiling and timing kernels for this GPU, once for each network and batch size%s",
                "" if self._file.path is None else f"; the choices are kept in {self._file.path}",
            )
        return candidates

    def _report(self) -> None:
        """Say how far it is, every few seconds."""
        now = time.monotonic()
        if self._started is not None and now - self._reported > _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            logger.info("%d kernels timed after %.0f s", len(self.timings), now - self._started)


def _key(kernel: str, problem: tuple[object, ...], device: torch.device) -> str:
    return " ".join(map(str, (kernel, *problem, *_platform(device))))


def _milliseconds(run: Callable[[Config], object], config: Config) -> float:
    """Mean time of a run; infinite where the card cannot run it."""
    try:
        for _ in range(_WARMUP):
            run(config)
    except Exception as error:
        logger.debug("%s cannot be run: %s", dict(config), error)
        return float("inf")
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(_REPEATS):
        run(config)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / _REPEATS


@functools.cache
def _platform(device: torch.device) -> tuple[str, ...]:
    """What a choice is valid for: card, Triton and these kernels."""
    return torch.cuda.get_device_name(device).replace(" ", "-"), triton.__version__


TUNER = Tuner(cache_folder() / "triton.json")
