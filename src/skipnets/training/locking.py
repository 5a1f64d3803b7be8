"""A lock on a run folder, so that two trainings never write to one; it ends with its process in any case."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from skipnets import run_folder
from skipnets.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A process does not see its own locks.
_held: set[Path] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder during the block; the folder is created.

    The system releases the lock when the process ends, even by SIGKILL. Where a file system has no locks, and
    on Windows, there is none.

    Raises:
        UserError: If another training holds it.
    """
    path, is_new = (folder / run_folder.LOCK).absolute(), not folder.exists()
    if path in _held:
        raise UserError(f"out: {folder} is in use by another training of this process")
    descriptor = _acquire(folder, path)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):  # the folder may have been removed
            path.unlink()
            if is_new:
                folder.rmdir()  # fails if anything was written
        os.close(descriptor)


def _acquire(folder: Path, path: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _try_lock(descriptor):
                holder = os.read(descriptor, 100).decode("utf-8", "replace")
                os.close(descriptor)
                raise UserError(
                    f"out: {folder} is in use by another training" + (f" ({holder})" if holder else "")
                )
            # Its last holder may have removed the file between opening and locking.
            if _is_same(descriptor, path):
                break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written: {error.strerror or error}") from error
    return descriptor


def _try_lock(descriptor: int) -> bool:
    """Lock a file, unless another process has; workers that are forked do not inherit such a lock."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # this file system has no locks
        return True
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
