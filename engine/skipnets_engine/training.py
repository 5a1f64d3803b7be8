"""Training passes on arrays or CPU tensors (anything with DLPack), computed in place without the GIL.

`skipnets.ops.native` calls these; their shapes are those of `src/dense_block.h`, `src/residual_block.h`,
`src/stem.h` and `src/transition.h`. What is only read is converted if need be. What is written must be of
single precision and, but for gradients of filters, contiguous; anything else is a TypeError.

`share_openmp(library)` makes these passes use the OpenMP threads of a loaded shared library, such as
libtorch_cpu.so, whose idle threads would otherwise take the processor from ours; False where there are none.
"""

from __future__ import annotations

from skipnets_engine._engine import (
    dense_block_backward,
    dense_block_forward,
    residual_block_backward,
    residual_block_forward,
    share_openmp,
    stem_backward,
    stem_forward,
    transition_backward,
    transition_forward,
)

__all__ = [
    "INTERFACE",
    "dense_block_backward",
    "dense_block_forward",
    "residual_block_backward",
    "residual_block_forward",
    "share_openmp",
    "stem_backward",
    "stem_forward",
    "transition_backward",
    "transition_forward",
]

# Raised when these functions change their meaning; skipnets asks for the one it knows.
INTERFACE = 5
