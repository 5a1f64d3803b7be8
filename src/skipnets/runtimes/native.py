"""Run a network in the native engine, the package skipnets-engine. Needs no torch.

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

from skipnets.errors import UserError, engine_command
from skipnets.models.family import network_graph
from skipnets.models.registry import config_from_dict
from skipnets.runtimes.runtime import TensorsDoNotFitError

__all__ = ["NativeRuntime", "NotForTheEngineError", "prefers_native"]

_INTERFACE = 2  # version of skipnets_engine's interface that this module uses


class NotForTheEngineError(UserError):
    """The engine is not installed or cannot run this network; another runtime may."""


class NativeRuntime:
    """A `skipnets.runtimes.Runtime` around a `skipnets_engine.Engine`.

    Args:
        engine: The compiled engine.
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
        """Compile a network for this processor.

        Args:
            architecture: From `config_to_dict`.
            tensors: The model's state dict.
            device: "auto" or "cpu".
            threads: CPU threads; None uses one per available processor.

        Raises:
            NotForTheEngineError: If the engine is not installed, has another version, or lacks one of the
                network's operations.
            TensorsDoNotFitError: If the tensors do not match the architecture.
            UserError: If the architecture is invalid, or the engine cannot run with these options.
        """
        if device not in ("auto", "cpu"):
            raise UserError(f"device={device}: must be auto or cpu for runtime=native")
        config = config_from_dict(architecture)
        # Every layer has a tensor, so what has more layers is refused before a graph of them is built.
        if sum(config.block_config) > len(tensors):
            raise TensorsDoNotFitError(
                f"the tensors do not fit the architecture: {len(tensors)} for blocks of "
                f"{config.block_config} layers"
            )
        graph = network_graph(config)
        if config.dims != 2:
            raise NotForTheEngineError(f"runtime=native: takes networks for images, not dims={config.dims}")
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
        """(N, C, H, W) images → (N, classes) logits."""
        return self._call(self.engine.logits, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features."""
        return self._call(self.engine.embed, batch)

    def plan(self, size: tuple[int, int], *, batch_size: int = 1, rounds: int = 20) -> dict[str, Any]:
        """The engine's execution plan for an image size, with measured times.

        Args:
            size: Height and width.
            batch_size: Of as many images as threads, or more, each thread computes its own. Fewer are
                computed one by one, by all threads together.
            rounds: Number of runs; times are their medians.

        Returns:
            `isa`, `threads`, `peak_macs` (multiply-accumulates per second of all threads) and `steps`, each
            with name, algorithm, shape, macs, bytes, seconds (for one image: the batch's time, divided by its
            images) and share_of_peak.
        """
        threads = self.engine.threads
        peak = _import_engine().peak_macs(self.engine.isa) * threads
        steps = self.engine.plan(size, images=batch_size, rounds=rounds)
        for step in steps:
            step["share_of_peak"] = step["macs"] / max(step["seconds"], 1e-9) / peak
        return {"isa": self.engine.isa, "threads": threads, "peak_macs": peak, "steps": steps}

    def _call(self, method: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            result: NDArray[np.float32] = method(batch)
        except _import_engine().EngineError as error:
            raise UserError(str(error)) from error
        return result


def prefers_native(device: str) -> bool:
    """Whether "auto" should try the engine first: it is installed, and no GPU is requested or likely present.

    Args:
        device: The user's device option.
    """
    if device not in ("auto", "cpu") or importlib.util.find_spec("skipnets_engine") is None:
        return False
    # Importing torch takes seconds, and "auto" must work without it.
    gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return device == "cpu" or not (gpu and importlib.util.find_spec("torch") is not None)


def _import_engine() -> Any:
    try:
        engine = importlib.import_module("skipnets_engine")
    except ImportError as error:
        raise NotForTheEngineError(
            f"runtime=native: needs the package skipnets-engine: {engine_command()}"
        ) from error
    if engine.INTERFACE != _INTERFACE:
        raise NotForTheEngineError(
            f"skipnets-engine {engine.__version__} does not match this skipnets "
            f"(interface {engine.INTERFACE}, not {_INTERFACE}): "
            f"{engine_command()} --upgrade"
        )
    return engine
