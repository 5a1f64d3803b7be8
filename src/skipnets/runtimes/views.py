"""Test-time augmentation: several views of each image, whose probabilities are averaged.

Probabilities are averaged, as in an ensemble, not logits: a view that the network is unsure of then says
little, however large its logits are. It is done around whichever runtime runs the network, so that all give
the same, and on whole batches, so that an image's result does not depend on the others.

Shapes: N batch, C channels, H height, W width, V views. Of volumes (N, C, D, H, W) the same axis is mirrored,
from left to right, and of signals (N, C, L) none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, near_matches
from skipnets.runtimes.ensemble import average_outputs

__all__ = ["TTA", "averaged_embeddings", "averaged_logits", "check_tta", "views"]

TTA = ("none", "flip", "crops", "flip-crops")
"""Test-time augmentations: each mirrored, five crops (of volumes nine, of signals three), or both."""

_SHIFT = 1 / 16  # of the shortest side
Network = Callable[[NDArray[Any]], NDArray[np.float32]]


def views(batch: NDArray[Any], tta: str) -> Iterator[NDArray[Any]]:
    """The views of a batch, (N, C, H, W) each.

    Args:
        batch: (N, C, H, W), or that of signals or volumes, pixels or normalized.
        tta: "none" is the batch alone; "flip" also mirrors it; "crops" also cuts it from its four corners
            (of volumes eight, of signals two ends) after it was padded by reflection, a sixteenth of the
            shortest side all around; "flip-crops" mirrors all of them.
    """
    shifted = list(_shifted(batch)) if "crops" in tta else [batch]
    yield from shifted
    if "flip" in tta:
        yield from (np.ascontiguousarray(view[..., ::-1]) for view in shifted)


def averaged_logits(
    network: Network, batch: NDArray[Any], tta: str, *, task: str = "single-label"
) -> NDArray[np.float32]:
    """(N, K) logits of a batch; of several views those of the views' mean probabilities, or mean numbers.

    Args:
        network: Computes the logits of a view.
        batch: (N, C, H, W).
        tta: One of `TTA`.
        task: As of `skipnets.runtimes.ensemble.average_outputs`.
    """
    if tta == "none":
        return network(batch)
    return average_outputs(np.stack([network(view) for view in views(batch, tta)]), task)


def averaged_embeddings(network: Network, batch: NDArray[Any], tta: str) -> NDArray[np.float32]:
    """(N, F) embeddings of a batch; of several views their mean."""
    if tta == "none":
        return network(batch)
    embedded = np.stack([network(view) for view in views(batch, tta)])
    return embedded.mean(axis=0, dtype=np.float64).astype(np.float32)


def check_tta(tta: str, dims: int = 2) -> None:
    """Check the name of a test-time augmentation.

    Args:
        tta: The name.
        dims: Spatial axes of the model's input, as far as they are known.

    Raises:
        UserError: If it is none of `TTA`, or mirrors signals.
    """
    if not isinstance(tta, str) or tta not in TTA:
        raise UserError(f"tta={tta}: must be one of {', '.join(TTA)}{near_matches(str(tta), TTA)}")
    if dims == 1 and "flip" in tta:
        raise UserError(f"tta={tta}: must be none or crops for signals, which backwards are others")


def _shifted(batch: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The batch, and those that are shifted towards its corners."""
    sides = batch.shape[2:]
    shift = max(round(min(sides) * _SHIFT), 1)
    padded = np.pad(batch, ((0, 0), (0, 0), *[(shift, shift)] * len(sides)), mode="reflect")
    yield batch
    for corner in itertools.product((0, 2 * shift), repeat=len(sides)):
        seen = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        yield np.ascontiguousarray(padded[:, :, *seen])
