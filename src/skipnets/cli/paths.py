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
        return [line for line in map(str.rstrip, sys.stdin) if line]
    if Path(path).is_dir():
        found = [str(picture) for picture in pictures_below(Path(path))]
        if not found:
            raise UserError(f"paths: {path} holds no pictures")
        return found
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute patterns work, too
    if not matches:
        raise UserError(f"paths: {path} is not there (nor does any file match it as a pattern)")
    return [picture for match in matches for picture in expand(match)]
