"""Bound the memory that a file of weights can take: compression and repetition make much of little."""

from __future__ import annotations

from pathlib import Path

from skipnets.errors import UserError

__all__ = ["check_expansion"]

_MOST = 16
"""Times a file's size. Weights are random in their lower bits: compression seldom halves them."""
_ALWAYS = 64 * 2**20
"""Bytes that are allowed whatever the size of the file."""


def check_expansion(path: Path, expanded: int) -> None:
    """Check that a file's arrays are not out of proportion to the file.

    Args:
        path: The file.
        expanded: Bytes of its arrays, in memory.

    Raises:
        UserError: If they are.
    """
    size = path.stat().st_size
    if expanded > _MOST * size + _ALWAYS:
        raise UserError(
            f"{path} would take {expanded / 2**20:,.0f} MiB of memory, and has {size / 2**20:,.1f} MiB: "
            "save the weights uncompressed"
        )
