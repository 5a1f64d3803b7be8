"""What a classifier asks of whatever runs its network.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["InputType", "Runtime", "TensorsDoNotFitError"]

InputType = Literal["uint8", "float32"]


class TensorsDoNotFitError(UserError):
    """Tensors and architecture do not belong together; whoever knows the file adds its name."""


class Runtime(Protocol):
    """Runs one network.

    Attributes:
        name: One of `skipnets.runtimes.RUNTIMES`, never "auto".
        input_type: What a batch holds: "float32" that `Preprocessing` has normalized, or "uint8" pixels for a
            graph that normalizes by itself.
    """

    name: str
    input_type: InputType

    @property
    def device(self) -> str:
        """Where it runs, for people: "cpu", "cuda:0", ..."""
        ...

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        ...

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, num_features): the last feature maps, pooled."""
        ...
