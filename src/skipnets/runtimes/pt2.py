"""Runs a network that torch.export wrote.

N is the images of a batch; C, H and W their channels, height and width.
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

from skipnets.errors import UserError
from skipnets.runtimes.exported import InputType
from skipnets.runtimes.torch import pick_device

__all__ = ["METADATA_FILE", "Pt2Runtime"]

METADATA_FILE = "skipnets.json"


class Pt2Runtime:
    """A `skipnets.runtimes.Runtime` around an exported program: the torch runtime for a .pt2.

    Args:
        module: Gives logits and features for a batch.
        device: Where it is.
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
        """Open a file; also gives the text of its metadata, if it has any.

        Raises:
            UserError: If it cannot be read, or there is no such device.
        """
        where = pick_device(device)
        texts: dict[str, Any] = {METADATA_FILE: ""}
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a readable .pt2 file (it is damaged or of another kind)")
        try:
            program = torch.export.load(path, extra_files=texts)
            if where.type != "cpu":
                program = move_to_device_pass(program, where)
        except Exception as error:  # a damaged archive makes it raise nearly anything
            raise UserError(f"{path} is not a readable .pt2 file ({_first_line(error)})") from error
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(program.module(), where), texts[METADATA_FILE] or None

    @property
    def device(self) -> str:
        """Where the constants are."""
        return str(self._device)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        return self._run(batch)[0]

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): the last feature maps, pooled."""
        return self._run(batch)[1]

    def _run(self, batch: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            outputs: tuple[Tensor, Tensor] = self.module(
                torch.tensor(np.ascontiguousarray(batch), device=self._device)
            )
        logits, features = (output.float().cpu().numpy() for output in outputs)
        return logits, features


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
