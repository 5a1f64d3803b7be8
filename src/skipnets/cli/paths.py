"""What commands take for images: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from pathlib import Path

from skipnets import inputs
from skipnets.errors import UserError


def expand(path: str) -> list[str]:
    """The images that one word of the command line stands for.

    Raises:
        UserError: It stands for none.
    """
    if path == "-":
        lines = [line for line in map(str.rstrip, sys.stdin) if line]
        if not lines:
            raise UserError("images: standard input holds no paths")
        return lines
    if not Path(path).exists() and not glob.has_magic(path):
        raise UserError(f"images: {path} is not there (nor does any file match it as a pattern)")
    return inputs.expand(path)
