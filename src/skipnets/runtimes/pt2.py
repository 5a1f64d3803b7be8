"""Run a network that torch.export wrote.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.runtimes.archive import Archive
from skipnets.runtimes.program import Program, read_program
from skipnets.runtimes.runtime import InputType, NoFeaturesError
from skipnets.runtimes.torch import pick_device, without_lost_threads

__all__ = ["Pt2Runtime"]


class Pt2Runtime:
    """A `skipnets.runtimes.Runtime` around an exported program: the torch runtime for a .pt2.

    Args:
        program: Maps a batch to logits and, if the network has them, features.
        device: Device of its tensors.
    """

    name = "torch"
    input_type: InputType = "float32"

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program = program
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
        with closing(Archive(path)) as archive:
            text = archive.metadata
            if text is None:
                raise UserError(
                    f"{path} was not written by skipnets export: it carries no classes and no preprocessing"
                )
            program = read_program(archive).to(where)
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(program, where), text

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return str(self._device)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        return self._run(batch)[0]

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features."""
        if len(self.program.outputs) == 1:
            raise NoFeaturesError
        return self._run(batch)[1]

    def _run(self, batch: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        without_lost_threads()
        with torch.inference_mode():
            outputs = self.program(torch.tensor(np.ascontiguousarray(batch), device=self._device))
        return tuple(output.float().cpu().numpy() for output in outputs)
