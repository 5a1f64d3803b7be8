"""Differentiable operations that run whole blocks of a model; they take tensors, not modules."""

from __future__ import annotations

from skipnets.lazy import lazy_exports

__all__: list[str] = []

__getattr__, __dir__ = lazy_exports(
    __name__,
    {},
    submodules=("batch_norm", "choices", "chunks", "convolution", "dense_block", "memory", "transition"),
    extra="train",
)
