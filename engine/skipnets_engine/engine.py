"""One network, ready to run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets_engine import _engine
from skipnets_engine.compiler import compile_graph
from skipnets_engine.errors import EngineError
from skipnets_engine.graph import Graph

# Raised when graphs, tensors or this class change their meaning; skipnets asks for the one it knows.
INTERFACE = 2

_CGROUP = Path("/sys/fs/cgroup")
_MOST_THREADS = 1024  # that the compiled part takes


class Engine:
    """A network planned for this processor.

    Any number of Python threads may call it at once; the GIL is free while it computes. The environment
    variable SKIPNETS_ENGINE_ISA forces one of `isas()`.

    Args:
        graph: The network's operations; a `skipnets.models.graph.Graph`, or anything with the attributes that
            `skipnets_engine.graph` names.
        tensors: Every tensor of the network under its state-dict name. They are copied.
        threads: How many threads compute, the caller among them; None takes one for each processor that this
            process may use, or as many as its container's share of processor time keeps busy.
        isa: The instruction set, one of `isas()`; None takes the environment's or the fastest.

    Raises:
        UnknownArchitectureError: If the engine does not know an operation.
        InvalidGraphError: If the graph contradicts itself.
        TensorsDoNotFitError: If tensors and graph do not belong together.
        EngineError: If threads or instruction set are impossible, or memory does not suffice.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, NDArray[Any]],
        *,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        wanted = os.environ.get("SKIPNETS_ENGINE_ISA", "") if isa is None else isa
        with _engine_errors():
            compiled = compile_graph(graph, tensors)
            self._stages = compiled.stages
            self._engine = _engine.Engine(
                compiled.network, wanted, _processors() if threads is None else threads
            )

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return str(self._engine.isa)

    @property
    def threads(self) -> int:
        """How many threads compute, the caller among them."""
        return int(self._engine.threads)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes); features where the network has no head."""
        return self._run(batch, logits=True)

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): the last maps, pooled."""
        return self._run(batch, logits=False)

    def stages(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The values of the graph's stages, (N, channels, h, w) each, by their paths.

        Values that are never computed are left out: the output of a convolution into whose weights a norm was
        folded, for instance.
        """
        stages = self._stages.values()
        with _engine_errors():
            values = self._engine.values(_as_images(batch), [stage.place.number for stage in stages])
        return {
            path: stage.finish(found) for path, stage, found in zip(self._stages, stages, values, strict=True)
        }

    def plan(self, size: tuple[int, int], *, images: int = 1, rounds: int = 20) -> list[dict[str, Any]]:
        """Every step with its measured time.

        Args:
            size: Height and width of the images.
            images: How many make a batch, from 1 to 4096. Of as many images as threads, or more, each thread
                computes the same number of its own, which is measured. Fewer, and those that are left over,
                are computed one by one, by all threads together.
            rounds: The time is the median over so many runs.

        Returns:
            For each step: name, algorithm, shape (of its output), macs and bytes (for one image), and
            seconds: the time of a batch, divided by its images.

        Raises:
            EngineError: If a number is out of range, or the images are too small for the network.
        """
        with _engine_errors():
            lines: list[dict[str, Any]] = self._engine.measure(*size, images, rounds)
        return lines

    def _run(self, batch: NDArray[np.float32], *, logits: bool) -> NDArray[np.float32]:
        with _engine_errors():
            result: NDArray[np.float32] = self._engine.run(_as_images(batch), logits)
        return result


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except MemoryError as error:
        raise EngineError("the network needs more memory than there is") from error
    except ValueError as error:
        raise EngineError(str(error)) from error


def _as_images(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    if batch.ndim != 4:
        raise EngineError(f"the input must be (N, C, H, W), not {batch.shape}")
    return np.ascontiguousarray(batch, dtype=np.float32)


def _processors() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _granted() or count, _MOST_THREADS)


def _granted() -> int | None:
    """Processors that the time granted to this container keeps busy, rounded up; None without a limit.

    As `skipnets.machine` has it, which this package does not need.
    """
    # Of control groups of version 2, then 1.
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUP / name).read_text("ascii") for name in names).split()
            if int(quota) > 0:
                return -(-int(quota) // int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such file, "max"
            continue
    return None
