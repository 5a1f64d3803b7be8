"""Atomic file writing: readers never see a partial file, even after a crash or a power cut.

A file is written beside its place, forced to the disk, renamed, and its folder forced to the disk. So after a
power cut there is the old file or the new one. What a power cut can cost is what was being written.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skipnets.errors import UserError

__all__ = [
    "atomic_path",
    "check_can_write",
    "force_to_disk",
    "is_file",
    "is_same",
    "is_temporary",
    "remove_orphans",
]

# A name such as ".model.4711-1a2b3c4d.tmp.safetensors". Without a process it is another program's.
_TEMPORARY = re.compile(r"\..*\.(?P<process>[0-9]+)-[0-9a-f]{8}\.tmp(?:\.[^.]*)?")
# Processes of other machines cannot be asked, but none writes for an hour without changing its file.
_FORGOTTEN_SECONDS = 3600

_looked_through: set[Path] = set()


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file at a path; also for text that can be no path, such as one that is too long."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for such text


def is_same(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file or folder that is there."""
    try:
        return os.path.samefile(path, other)  # noqa: PTH121 - Path.samefile raises for some texts as well
    except (OSError, ValueError):
        return False


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path next to `path`, renamed to it if the block succeeds and removed if it does not.

    The temporary name keeps the suffix, for libraries that choose a format by it. The parent folder is
    created. An existing file is replaced; an existing folder is not. Temporaries that killed processes left
    in the folder are removed when this process first writes there.

    Raises:
        UserError: If the path cannot be written.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(final, error) from error
    if (folder := final.parent.absolute()) not in _looked_through:
        _looked_through.add(folder)
        remove_orphans(folder)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{final.suffix}")
    try:
        yield temporary
        force_to_disk(temporary)
        temporary.replace(final)
        force_to_disk(final.parent, only_folder=True)
    except OSError as error:
        # Errors of other files in the block pass through. A full disk names no file.
        name = None if error.filename is None else os.fsdecode(error.filename)
        if name is not None and name != str(temporary) and temporary not in Path(name).parents:
            raise
        raise _write_error(final, error) from error
    finally:
        with suppress(OSError):  # The disk may be failing; the error that is under way says so.
            _remove(temporary)


def check_can_write(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Check, before slow work whose result is written there, that a path can be written.

    Args:
        path: It need not exist, nor the folders that it lies in.
        folder: Whether it is to be a folder, if it does not exist.

    Raises:
        UserError: If it cannot.
    """
    final = Path(path)
    try:
        within = folder or final.is_dir()
        candidates = (final, *final.absolute().parents) if within else tuple(final.absolute().parents)
        place = next(each for each in candidates if each.exists())
        final.exists()
    except OSError as error:  # such as a name that is too long
        raise _write_error(final, error) from error
    if not place.is_dir():
        raise UserError(f"{final} cannot be written: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{final} cannot be written: no permission to write to {place}")


def remove_orphans(folder: Path, *, in_use: bool = True) -> None:
    """Remove temporaries in a folder that `atomic_path` left where its process was killed.

    Args:
        folder: Looked through alone, not the folders in it.
        in_use: Whether other processes may be writing to the folder. Then only those are removed whose
            process does not run and which nobody changed for an hour.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(".")]
    except OSError:
        return
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match is None:
            continue
        orphan = folder / name
        with suppress(OSError):
            if not in_use or _is_forgotten(orphan, match["process"]):
                _remove(orphan)


def is_temporary(path: Path) -> bool:
    """Whether a path has the name of a file that `atomic_path` is writing, or was when it was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def force_to_disk(path: Path, *, only_folder: bool = False) -> None:
    """Wait until a file, or a folder with all files in it, is on the disk and not in the system's memory.

    Args:
        path: A file or a folder.
        only_folder: Only the folder's list of names.
    """
    if path.is_dir():
        if not only_folder:
            for inside in path.iterdir():
                force_to_disk(inside)
        if os.name == "nt":  # Windows cannot open folders
            return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_forgotten(orphan: Path, process: str) -> bool:
    if time.time() - orphan.stat().st_mtime < _FORGOTTEN_SECONDS:
        return False
    if os.name == "nt":  # os.kill would end it there
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_error(final: Path, error: OSError) -> UserError:
    return UserError(f"{final} cannot be written: {error.strerror or error}")
