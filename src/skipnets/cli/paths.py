"""What commands take for pictures: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from pathlib import Path

from skipnets.data.sources import pictures_below
from skipnets.errors import UserError


def expand(path: str) -> list[str]:
    """The pictures that one word of the command line stands for."""
    if path == "-":
        lines = [line for line in map(str.rstrip, sys.stdin) if line]
        if not lines:
            raise UserError("pictures: standard input holds no paths")
        return lines
    if Path(path).is_dir():
        found = [str(picture) for picture in pictures_below(Path(path))]
        if not found:
            raise UserError(f"pictures: {path} holds no pictures")
        return found
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute patterns work, too
    if not matches:
        raise UserError(f"pictures: {path} is not there (nor does any file match it as a pattern)")
    return [picture for match in matches for picture in expand(match)]
