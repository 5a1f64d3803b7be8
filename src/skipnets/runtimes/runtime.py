"""The protocol of inference runtimes.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["InputType", "NoFeaturesError", "Runtime", "TensorsDoNotFitError"]

InputType = Literal["uint8", "float32"]


class TensorsDoNotFitError(UserError):
    """The tensors do not match the architecture. The caller adds the name of the file."""


class NoFeaturesError(UserError):
    """A network has logits only.

    Args:
        message: Why; None says it of an export.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "embed: this export has no features, as its network has no linear layer for the classes whose "
            "input they would be, nor timm's forward_features and forward_head"
        )


class Runtime(Protocol):
    """Runs a network.

    Attributes:
        name: One of `skipnets.runtimes.RUNTIMES`, never "auto".
        input_type: Type of a batch: "float32", normalized by `Preprocessing`, or "uint8" pixels for a graph
            that normalizes them.
    """

    name: str
    input_type: InputType

    @property
    def device(self) -> str:
        """The device that it runs on: "cpu", "cuda:0", ..."""
        ...

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        ...

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features.

        Raises:
            NoFeaturesError: If it has none.
        """
        ...
