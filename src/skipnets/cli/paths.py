"""Expand image arguments of commands: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from skipnets import inputs
from skipnets.data.decoding import MAX_PIXELS, Page
from skipnets.data.streams import paths_on_standard_input
from skipnets.errors import UserError, check_at_least_1


def expand_all(words: Sequence[str], *, argument: str = "images", dims: int = 2) -> list[str]:
    """Expand several arguments to image paths; a file that is missing fails later, as a damaged image does.

    Args:
        words: Files, folders or patterns.
        argument: What errors call them.
        dims: What folders are searched for: 2 for images, 3 for volumes, 1 for signals.

    Raises:
        UserError: If a folder or pattern holds none, all files are missing, or one that is begins like an
            option.
    """
    missing = [word for word in words if _is_missing(word)]
    if strange := [word for word in missing if word.startswith("--")]:
        raise UserError(f"{strange[0]}: no such option, and no such file")
    if len(missing) == len(words):
        expand(words[0], argument=argument, dims=dims)
    return [
        path
        for word in words
        for path in ([word] if word in missing else expand(word, argument=argument, dims=dims))
    ]


def expand(path: str, *, argument: str = "images", dims: int = 2) -> list[str]:
    """Expand one argument to image paths.

    Args:
        path: A file, a folder, a pattern, or "-".
        argument: What errors call it.
        dims: What a folder is searched for, as of `expand_all`.

    Raises:
        UserError: If there are none.
    """
    if path == "-":
        paths = list(paths_on_standard_input())
        if not paths:
            raise UserError(f"{argument}: standard input holds no paths")
        return paths
    if _is_missing(path):
        raise UserError(f"{argument}: {path} does not exist (and no file matches it as a pattern)")
    return inputs.expand(path, dims=dims)


def _is_missing(path: str) -> bool:
    return path != "-" and not Path(path).exists() and not glob.has_magic(path)


def chosen_pages(
    paths: Sequence[str], *, page: int | None, max_pixels: int | None
) -> Sequence[str] | Sequence[Page]:
    """The images in these files, where a page or a limit is chosen for them.

    Args:
        paths: The files.
        page: Counted from 1; None for the one that stands for a file.
        max_pixels: The most that an image may have; None for the default.
    """
    check_at_least_1(page=page, max_pixels=max_pixels)
    if page is None and max_pixels is None:
        return paths
    number = None if page is None else page - 1
    return [Page(Path(path), number, max_pixels or MAX_PIXELS) for path in paths]
