"""Run a network that torch.export wrote.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from skipnets.errors import UserError, one_line
from skipnets.runtimes.graph_format import PT2_METADATA
from skipnets.runtimes.runtime import InputType
from skipnets.runtimes.torch import pick_device, without_lost_threads

__all__ = ["Pt2Runtime"]


class Pt2Runtime:
    """A `skipnets.runtimes.Runtime` around an exported program: the torch runtime for a .pt2.

    Args:
        module: Maps a batch to logits and features.
        device: Device of its tensors.
    """

    name = "torch"
    input_type: InputType = "float32"

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self._device = device

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", threads: int | None = None
    ) -> tuple[Pt2Runtime, str | None]:
        """Open a file; also returns its metadata text, if there is any.

        Raises:
            UserError: If it cannot be read, or the device is not available.
        """
        where = pick_device(device)
        texts: dict[str, Any] = {PT2_METADATA: ""}
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a readable .pt2 file (it is damaged or of another type)")
        try:
            program = torch.export.load(path, extra_files=texts)
            if where.type != "cpu":
                program = move_to_device_pass(program, where)
        except Exception as error:  # a damaged archive makes it raise nearly anything
            raise UserError(f"{path} is not a readable .pt2 file ({one_line(error, 0)})") from error
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(program.module(), where), texts[PT2_METADATA] or None

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return str(self._device)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        return self._run(batch)[0]

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features."""
        return self._run(batch)[1]

    def _run(self, batch: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        without_lost_threads()
        with torch.inference_mode():
            outputs: tuple[Tensor, Tensor] = self.module(
                torch.tensor(np.ascontiguousarray(batch), device=self._device)
            )
        logits, features = (output.float().cpu().numpy() for output in outputs)
        return logits, features
