"""Checkpoints of PyTorch Lightning, whose state dict has a module's metrics and losses beside its network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from skipnets.errors import UserError, listed

__all__ = ["is_lightning", "without_state"]


def is_lightning(contents: object) -> bool:
    """Whether the contents of a file are those of a Lightning checkpoint."""
    return isinstance(contents, Mapping) and "pytorch-lightning_version" in contents


def without_state(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave out what is no layer of the network: state of metrics, weights of losses.

    A Lightning module names its parts by its attributes (`model.conv1.weight`, `val_acc.tp`). Where one of
    them has all convolutions, it is the network, and of the others only those are kept that have a linear
    layer, as a head of its own does. Otherwise the names show nothing, and all is kept.

    Args:
        tensors: A Lightning module's state dict.
        source: Its name, for messages.

    Returns:
        The tensors to load, and a note that lists the others.

    Raises:
        UserError: If several parts are whole networks, such as a student and a teacher.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    networks = [part for part, inner in parts.items() if any(map(_is_kernel, inner.items()))]
    twins = [
        part
        for part in networks
        if part != networks[0] and _shapes(parts[part]) == _shapes(parts[networks[0]])
    ]
    if twins and len(parts[networks[0]]) > 1:
        names = [networks[0], *twins]
        raise UserError(
            f"weights: {source} has several networks: {listed(names)}; weights_ignore must name all but one, "
            f"such as {names[-1]}.*"
        )
    if len(networks) != 1:
        return dict(tensors), ()
    kept = {networks[0]} | {part for part, inner in parts.items() if _has_linear(inner)}
    left_out = [name for name in tensors if name.partition(".")[0] not in kept]
    if not left_out:
        return dict(tensors), ()
    return (
        {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in kept},
        (f"left out, as no layers of the network {networks[0]!r}: {', '.join(left_out)}",),
    )


def _shapes(part: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in part.items()}


def _is_kernel(entry: tuple[str, Tensor]) -> bool:
    """Whether a tensor is the weight of a convolution; states of metrics may have three axes, too."""
    name, tensor = entry
    return tensor.ndim in (4, 5) or (tensor.ndim == 3 and name.rpartition(".")[2] == "weight")


def _has_linear(part: Mapping[str, Tensor]) -> bool:
    return any(
        tensor.ndim == 2 and tensor.is_floating_point() and name.rpartition(".")[2] == "weight"
        for name, tensor in part.items()
    )
