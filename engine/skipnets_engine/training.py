"""Training passes on arrays or CPU tensors (anything with DLPack), computed in place without the GIL.

`skipnets.ops.native` calls these; their shapes are those of `src/dense_block.h` and `src/residual_block.h`.
"""

from __future__ import annotations

from skipnets_engine._engine import (
    dense_block_backward,
    dense_block_forward,
    residual_block_backward,
    residual_block_forward,
)

__all__ = [
    "INTERFACE",
    "dense_block_backward",
    "dense_block_forward",
    "residual_block_backward",
    "residual_block_forward",
]

# Raised when these functions change their meaning; skipnets asks for the one it knows.
INTERFACE = 2
