"""Runs a network in the native engine, the package skipnets-engine. Needs no torch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.models.family import network_graph
from skipnets.models.registry import config_from_dict
from skipnets.runtimes.runtime import TensorsDoNotFitError

__all__ = ["NativeRuntime", "NotForTheEngineError", "prefers_native"]

_INTERFACE = 2  # of skipnets_engine, which this module is written for


class NotForTheEngineError(UserError):
    """The engine is not here, or cannot run this network; another runtime may."""


class NativeRuntime:
    """A `skipnets.runtimes.Runtime` around a `skipnets_engine.Engine`.

    Args:
        engine: Used as it is.
    """

    name = "native"
    input_type: Literal["uint8", "float32"] = "float32"
    device = "cpu"

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @classmethod
    def from_tensors(
        cls,
        architecture: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        device: str = "auto",
        threads: int | None = None,
    ) -> NativeRuntime:
        """Plan the network of an architecture for this processor.

        Args:
            architecture: What `config_to_dict` wrote.
            tensors: Exactly the model's state dict.
            device: "auto" or "cpu".
            threads: None takes one for each processor that this process may use.

        Raises:
            NotForTheEngineError: If the engine is not installed, of another version, or does not know one of
                the network's operations.
            TensorsDoNotFitError: If tensors and architecture do not belong together.
            UserError: If the architecture is none, or the engine cannot run as asked.
        """
        if device not in ("auto", "cpu"):
            raise UserError(f'device={device}: must be "auto" or "cpu" for runtime "native"')
        graph = network_graph(config_from_dict(architecture))
        skipnets_engine = _import_engine()
        try:
            engine = skipnets_engine.Engine(graph, tensors, threads=threads)
        except skipnets_engine.UnknownArchitectureError as error:
            raise NotForTheEngineError(f"{graph.name}: {error}") from error
        except skipnets_engine.TensorsDoNotFitError as error:
            raise TensorsDoNotFitError(str(error)) from error
        except skipnets_engine.EngineError as error:
            raise UserError(str(error)) from error
        return cls(engine)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        return self._call(self.engine.logits, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): the last feature maps, pooled."""
        return self._call(self.engine.embed, batch)

    def plan(self, size: tuple[int, int], *, batch: int = 1, rounds: int = 20) -> dict[str, Any]:
        """How the engine runs images of a size, measured.

        Args:
            size: Height and width.
            batch: Images at once: 1 is computed by all threads together, more are shared out.
            rounds: Times are medians over so many runs.

        Returns:
            `isa`, `threads`, `peak_macs` (multiply-adds a second that all threads could do) and `steps`, each
            with name, algorithm, shape, macs, bytes, seconds (for one image) and share_of_peak.
        """
        threads = self.engine.threads
        peak = _import_engine().peak_macs(self.engine.isa) * threads
        steps = self.engine.plan(size, images=-(-batch // threads) if batch > 1 else 1, rounds=rounds)
        for step in steps:
            if batch > 1:  # each thread computes its own images meanwhile
                step["seconds"] /= min(threads, batch)
            step["share_of_peak"] = step["macs"] / max(step["seconds"], 1e-9) / peak
        return {"isa": self.engine.isa, "threads": threads, "peak_macs": peak, "steps": steps}

    def _call(self, method: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            result: NDArray[np.float32] = method(batch)
        except _import_engine().EngineError as error:
            raise UserError(str(error)) from error
        return result


def prefers_native(device: str) -> bool:
    """Whether "auto" should ask the engine first: it is installed and no GPU is wanted or likely to be here.

    Args:
        device: As a user gives it.
    """
    if device not in ("auto", "cpu") or importlib.util.find_spec("skipnets_engine") is None:
        return False
    # Asking torch would cost seconds, and its being here is what "auto" is not to depend on.
    gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return device == "cpu" or not (gpu and importlib.util.find_spec("torch") is not None)


def _import_engine() -> Any:
    try:
        engine = importlib.import_module("skipnets_engine")
    except ImportError as error:
        raise NotForTheEngineError(
            f'runtime "native" needs the package skipnets-engine: pip install skipnets-engine ({error})'
        ) from error
    if engine.INTERFACE != _INTERFACE:
        raise NotForTheEngineError(
            f"skipnets-engine {engine.__version__} does not fit this skipnets (interface {engine.INTERFACE}, "
            f"not {_INTERFACE}): pip install --upgrade skipnets skipnets-engine"
        )
    return engine
