"""Run several networks on the same images and average their probabilities, or numbers.

Shapes: N batch, C channels, H height, W width, E networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.runtimes.runtime import InputType, Runtime

__all__ = ["EnsembleRuntime", "average_label_logits", "average_logits", "average_outputs"]


class EnsembleRuntime:
    """A `skipnets.runtimes.Runtime` around those of several networks, one after another.

    Args:
        members: At least one, all of one kind; their networks may differ.
        task: As of `average_outputs`.
    """

    def __init__(self, members: Sequence[Runtime], *, task: str = "single-label") -> None:
        self.members = tuple(members)
        self._task = task
        self.name = self.members[0].name
        self.input_type: InputType = self.members[0].input_type

    @property
    def device(self) -> str:
        """The device that the networks run on."""
        return self.members[0].device

    @property
    def precision(self) -> str | None:
        """What all networks compute in; None where that is not one or not known."""
        found = {getattr(member, "precision", None) for member in self.members}
        return found.pop() if len(found) == 1 else None

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits of the networks' mean probabilities, or mean numbers."""
        return average_outputs(np.stack([member.logits(batch) for member in self.members]), self._task)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, E * num_features): the networks' pooled features side by side.

        They are not averaged: the features of one network have nothing to do with those of another.
        """
        return np.concatenate([member.embed(batch) for member in self.members], axis=1)


def average_outputs(outputs: NDArray[np.floating[Any]], task: str) -> NDArray[np.float32]:
    """(E, N, K) outputs of several networks, or of one for several views → (N, K).

    Args:
        outputs: Logits, or scaled numbers.
        task: "single-label" for probabilities that are the softmax of logits, "multi-label" for the sigmoid
            of each, "regression" for numbers.
    """
    if task == "regression":
        return outputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    return average_label_logits(outputs) if task == "multi-label" else average_logits(outputs)


def average_logits(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(E, N, classes) logits → (N, classes), whose softmax is the mean of the E softmaxes."""
    shifted = logits.astype(np.float64) - logits.max(2, keepdims=True)
    probabilities = np.exp(shifted)
    log_probabilities = shifted - np.log(probabilities.sum(2, keepdims=True))
    averaged: NDArray[np.float64] = np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(logits))
    return averaged.astype(np.float32)


def average_label_logits(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(E, N, labels) logits → (N, labels), whose sigmoids are the means of the E sigmoids."""
    doubled = logits.astype(np.float64)
    # log σ(z) = -log(1 + e^-z), and of the other side -log(1 + e^z).
    present = np.logaddexp.reduce(-np.logaddexp(0, -doubled), axis=0)
    absent = np.logaddexp.reduce(-np.logaddexp(0, doubled), axis=0)
    averaged: NDArray[np.float32] = (present - absent).astype(np.float32)
    return averaged
