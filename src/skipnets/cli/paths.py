"""Expand image arguments of commands: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from pathlib import Path

from skipnets import inputs
from skipnets.errors import UserError


def expand(path: str) -> list[str]:
    """Expand one argument to image paths.

    Raises:
        UserError: If there are none.
    """
    if path == "-":
        lines = [line for line in map(str.rstrip, sys.stdin) if line]
        if not lines:
            raise UserError("images: standard input holds no paths")
        return lines
    if not Path(path).exists() and not glob.has_magic(path):
        raise UserError(f"images: {path} does not exist (and no file matches it as a pattern)")
    return inputs.expand(path)
