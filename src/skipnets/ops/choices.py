"""Choices between ways to compute the same thing, measured where it runs and kept in the user's cache folder.

A choice is made once for each problem on each machine: the file's keys name the processor, its instruction
set, the threads and the versions of what computes. Ways differ in rounding, so a run that is to be repeated
bit for bit records its choices (`Choices.recording`) and gives them back (`Choices.repeating`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.machine import library_versions, processor

logger = logging.getLogger("skipnets")

_ROUNDS = 4
_SECONDS, _MOST_ROUNDS = 0.05, 40
"""Ways that take less time altogether are run more often: one disturbance would decide."""

_LIBRARIES = ("skipnets", "torch", "skipnets-engine")


class ChoiceFile:
    """A JSON file of choices by key, shared by processes; without a path nothing is kept beyond this one.

    Not safe to use from several threads.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._chosen: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """What was chosen, or None."""
        if self._chosen is None:
            self._chosen = self._read()
        return self._chosen.get(key)

    def put(self, key: str, choice: object) -> None:
        """Keep a choice; a folder that cannot be written costs no more than measuring again."""
        self.get(key)
        assert self._chosen is not None
        self._chosen[key] = choice
        if self.path is None:
            return
        try:
            self._chosen = self._read(warn=False) | self._chosen  # Others may have written since.
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self._chosen, indent=0), encoding="utf-8")
        except (OSError, UserError) as error:  # A full disk, a read-only home, …
            logger.debug("choices cannot be kept: %s", error)

    def _read(self, *, warn: bool = True) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            if warn:
                logger.warning("%s is ignored and written anew: %s", self.path, error)
            return {}
        return content


class Choices:
    """Chooses by measuring; safe to use from several threads, which then wait for one another."""

    def __init__(self, path: Path | None) -> None:
        self._file = ChoiceFile(path)
        self._lock = threading.RLock()
        self._recorded: list[dict[str, str]] = []
        self._repeated: dict[str, str] = {}

    def choose(self, problem: str, ways: Mapping[str, Callable[[], object]], rounds: int = _ROUNDS) -> str:
        """The name of the fastest way.

        Args:
            problem: What the choice depends on, apart from the machine.
            ways: Name → runs it; likely ones first. What they compute must not depend on how often they run.
            rounds: How often each is timed at least, in turns, after one run that is not.
        """
        with self._lock:
            choice = self._repeated.get(problem)
            if choice is not None and choice not in ways:
                logger.warning(
                    "%s: the recorded choice, %s, is not available here: results may round differently",
                    *(problem, choice),
                )
                del self._repeated[problem]  # Said once, and measured once.
                choice = None
            choice = choice or self._file.get(f"{problem} | {machine()}")
            # Not measured yet, one of another version, or damaged.
            if not isinstance(choice, str) or choice not in ways:
                choice = next(iter(ways)) if len(ways) == 1 else self._measure(problem, ways, rounds)
            for record in self._recorded:
                record[problem] = choice
            return choice

    def seconds(self, problem: str) -> dict[str, float]:
        """What was measured for a problem on this machine: the least time of each way; {} before that."""
        with self._lock:
            seconds = self._file.get(f"{problem} seconds | {machine()}")
            return dict(seconds) if isinstance(seconds, dict) else {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[str, str]]:
        """Collect what is chosen inside, measured now or earlier: problem → way."""
        record: dict[str, str] = {}
        with self._lock:
            self._recorded.append(record)
        try:
            yield record
        finally:
            with self._lock:
                self._recorded = [other for other in self._recorded if other is not record]

    def repeat(self, recorded: Mapping[str, str]) -> None:
        """From now on in this process, choose what was recorded, where that is available."""
        with self._lock:
            self._repeated = dict(recorded)

    def _measure(self, problem: str, ways: Mapping[str, Callable[[], object]], rounds: int) -> str:
        times: dict[str, list[float]] = {name: [] for name in ways}
        started = time.perf_counter()
        for number in range(_MOST_ROUNDS + 1):
            if number > rounds and time.perf_counter() - started > _SECONDS:
                break
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        least = {name: min(own[1:]) for name, own in times.items()}
        choice = min(least, key=least.__getitem__)
        self._file.put(f"{problem} seconds | {machine()}", least)
        self._file.put(f"{problem} | {machine()}", choice)
        return choice


def machine() -> str:
    """What a measurement is valid for: processor, instruction sets, threads, versions."""
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "SKIPNETS_ENGINE_ISA")]
    threads = f"{torch.get_num_threads()} threads"
    return " ".join([_processor(), *filter(None, limits), threads, *_versions()])


@functools.cache
def _processor() -> str:
    return f"{processor()} {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(f"{name} {version}" for name, version in library_versions(_LIBRARIES).items())


def cache_folder() -> Path:
    """Where choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipnets"


CHOICES = Choices(cache_folder() / "cpu.json")
