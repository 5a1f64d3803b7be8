"""The files that a manifest lists: where they lie, however their paths are written."""

from __future__ import annotations

import ntpath
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from skipnets.data.layout import images_below
from skipnets.data.listing import Listing, counted
from skipnets.data.manifest_tables import looks_like_path
from skipnets.errors import UserError, listed
from skipnets.files import is_file

__all__ = ["MissingFilesError", "find_files", "relative_name"]


class MissingFilesError(UserError):
    """A manifest lists files that are not there.

    Attributes:
        names: All of them.
    """

    def __init__(self, manifest: Path, names: Sequence[str], *, of: int, root: Path) -> None:
        super().__init__(
            f"{manifest}: {len(names):,} of {of:,} listed files are not below {root}: {listed(names, 20)}; "
            "--root names another folder, --missing skip leaves them out"
        )
        self.names = list(names)


def find_files(
    manifest: Path, written: Sequence[str], root: Path, listing: Listing, missing: str
) -> list[str | None]:
    """The files that are meant, below the root where they lie there; None for those that are missing.

    Args:
        manifest: What lists them.
        written: The paths as it has them.
        root: What relative paths start from.
        listing: Gets notes, and what is missing.
        missing: "error", or "skip".

    Raises:
        MissingFilesError: If one is not there, and nothing is to be left out.
    """
    with_slashes = [_with_slashes(name) for name in written]
    prefix = _foreign_prefix(with_slashes, root)
    if prefix:
        listing.notes.append(f'"{prefix}" in the paths is read as {root}')
    by_stem: dict[str, list[str]] | None = None
    resolved: list[str | None] = []
    absent = []
    for original, name in zip(written, with_slashes, strict=True):
        relative = name.removeprefix(prefix)
        found = next((one for one in (original, name, relative) if is_file(root / one)), None)
        if found is None and not looks_like_path(relative):
            # An identifier such as "ISIC_0001" stands for the one file that is called so.
            by_stem = _stems(root) if by_stem is None else by_stem
            candidates = by_stem.get(PurePosixPath(relative).name, [])
            found = candidates[0] if len(candidates) == 1 else None
        if found is None:
            absent.append(original)
        resolved.append(found and relative_name(root, found))
    if absent and missing != "skip":
        raise MissingFilesError(manifest, absent, of=len(written), root=root)
    if absent:
        listing.passed_over["listed files that are not there"] += len(absent)
        listing.warnings.append(f"{counted(len(absent), 'listed file')} not there: {listed(absent)}")
    return resolved


def relative_name(root: Path, name: str) -> str:
    """A path in its shortest form: relative to the root if it lies there, else absolute."""
    inside = os.path.relpath(root / name, root)
    return Path(os.path.abspath(root / name) if inside.startswith("..") else inside).as_posix()  # noqa: PTH100


def _with_slashes(name: str) -> str:
    """A path as it is written on Windows, or as a file URL, with forward slashes."""
    name = name.removeprefix("file://")
    return name.replace("\\", "/") if "\\" in name or ntpath.splitdrive(name)[0] else name


def _foreign_prefix(names: Sequence[str], root: Path) -> str:
    """The beginning that all absolute paths share and that is another machine's; "" if there is none."""
    first = names[0]
    if not (first.startswith("/") or re.match(r"[A-Za-z]:/", first)) or is_file(root / first):
        return ""
    parts = first.split("/")
    for depth in range(1, len(parts)):
        if (root / "/".join(parts[depth:])).is_file():
            prefix = "/".join(parts[:depth]) + "/"
            return prefix if all(name.startswith(prefix) for name in names) else ""
    return ""


def _stems(root: Path) -> dict[str, list[str]]:
    """File name without suffix → the images below the root that are called so."""
    stems: dict[str, list[str]] = {}
    for image in images_below(root):
        stems.setdefault(image.stem, []).append(image.relative_to(root).as_posix())
    return stems
