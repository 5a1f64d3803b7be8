"""Whether a GPU multiplies float32 in TF32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def products_in_tf32(allowed: bool) -> Iterator[None]:
    """Allow it to convolutions and matrix products, or forbid it."""
    products: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [each.allow_tf32 for each in products]
    for each in products:
        each.allow_tf32 = allowed
    try:
        yield
    finally:
        for each, value in zip(products, before, strict=True):
            each.allow_tf32 = value
