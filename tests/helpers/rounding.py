"""How far float32 results of operations are from float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def errors(own: Tensors, exact: Tensors) -> list[float]:
    """The greatest error of each tensor, relative to its greatest number (or 0.01, for what cancels)."""
    return [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-2)) for a, b in zip(own, exact, strict=True)
    ]


def assert_as_exact_as(
    cases: Iterable[tuple[Tensors, Tensors, Tensors]], *, each: float = 3, mean: float = 1.5
) -> None:
    """Over seeds, each tensor's error is about that of another float32.

    Args:
        cases: For each seed, what was made, what the other one made, and the same in float64.
        each: The bound of a tensor's median error, in ratio to the other's.
        mean: The bound of their mean.
    """
    own, others = [], []
    for made, other, exact in cases:
        own.append(errors(made, exact))
        others.append(errors(other, exact))
    mine, theirs = (torch.tensor(found).median(0).values for found in (own, others))
    assert (mine <= each * theirs + 1e-6).all(), (mine / theirs).tolist()
    assert mine.mean() <= mean * theirs.mean()


def random_normal(seed: int) -> Callable[..., Tensor]:
    """A function from sizes to random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*size, generator=generator, dtype=torch.float64)

    return normal
