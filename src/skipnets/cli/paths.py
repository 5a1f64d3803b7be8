"""What commands take for images: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from pathlib import Path

from skipnets.data.sources import images_below
from skipnets.errors import UserError


def expand(path: str) -> list[str]:
    """The images that one word of the command line stands for."""
    if path == "-":
        lines = [line for line in map(str.rstrip, sys.stdin) if line]
        if not lines:
            raise UserError("images: standard input holds no paths")
        return lines
    if Path(path).is_dir():
        found = [str(image) for image in images_below(Path(path))]
        if not found:
            raise UserError(f"images: {path} holds no images")
        return found
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute patterns work, too
    if not matches:
        raise UserError(f"images: {path} is not there (nor does any file match it as a pattern)")
    return [image for match in matches for image in expand(match)]
