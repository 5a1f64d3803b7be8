"""One network, ready to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets_engine import _engine
from skipnets_engine.errors import EngineError
from skipnets_engine.network import build_network

# Raised when architectures, tensors or this class change their meaning; skipnets asks for the one it knows.
INTERFACE = 1


class Engine:
    """A network planned for this processor.

    Any number of Python threads may call it at once; the GIL is free while it computes. The environment
    variable SKIPNETS_ENGINE_ISA forces one of `isas()`.

    Args:
        architecture: What `skipnets.models.registry.config_to_dict` wrote.
        tensors: Every tensor of the network under its state-dict name. They are copied.
        threads: How many threads compute, the caller among them; None takes one for each processor that this
            process may use.
        isa: The instruction set, one of `isas()`; None takes the environment's or the fastest.

    Raises:
        UnknownArchitectureError: If the engine has no plan for such a network.
        TensorsDoNotFitError: If tensors and architecture do not belong together.
        EngineError: If threads or instruction set are impossible.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        wanted = os.environ.get("SKIPNETS_ENGINE_ISA", "") if isa is None else isa
        self._built = build_network(architecture, tensors)
        try:
            self._engine = _engine.Engine(self._built.network, wanted, threads or _processors())
        except ValueError as error:
            raise EngineError(str(error)) from error

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
        """The maps between the stages, (N, channels, h, w) each, by the module that makes them."""
        names = list(self._built.stages)
        try:
            maps = self._engine.values(_as_images(batch), [self._built.stages[name].value for name in names])
        except ValueError as error:
            raise EngineError(str(error)) from error
        return {name: self._built.stages[name].finish(found) for name, found in zip(names, maps, strict=True)}

    def plan(self, size: tuple[int, int], *, images: int = 1, rounds: int = 20) -> list[dict[str, Any]]:
        """Every step with its measured time.

        Args:
            size: Height and width of the images.
            images: 1 measures one image computed by all threads; more, that many on each thread for itself.
            rounds: The time is the median over so many runs.

        Returns:
            A line a step: name, algorithm, shape (of what it makes), macs, bytes and seconds (for one image).
        """
        try:
            lines: list[dict[str, Any]] = self._engine.measure(*size, images, rounds)
        except ValueError as error:
            raise EngineError(str(error)) from error
        return lines

    def _run(self, batch: NDArray[np.float32], *, logits: bool) -> NDArray[np.float32]:
        try:
            result: NDArray[np.float32] = self._engine.run(_as_images(batch), logits)
        except ValueError as error:
            raise EngineError(str(error)) from error
        return result


def _as_images(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    if batch.ndim != 4:
        raise EngineError(f"the input must be (N, C, H, W), not {batch.shape}")
    return np.ascontiguousarray(batch, dtype=np.float32)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
