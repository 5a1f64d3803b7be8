"""Expand image arguments of commands: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from skipnets import inputs
from skipnets.errors import UserError


def expand_all(words: Sequence[str]) -> list[str]:
    """Expand several arguments to image paths; a file that is missing fails later, as a damaged image does.

    Raises:
        UserError: If a folder or pattern holds none, or all files are missing.
    """
    missing = [word for word in words if _is_missing(word)]
    if len(missing) == len(words):
        expand(words[0])
    return [path for word in words for path in ([word] if word in missing else expand(word))]


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
    if _is_missing(path):
        raise UserError(f"images: {path} does not exist (and no file matches it as a pattern)")
    return inputs.expand(path)


def _is_missing(path: str) -> bool:
    return path != "-" and not Path(path).exists() and not glob.has_magic(path)
