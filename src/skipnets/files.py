"""Atomic file writing: readers never see a partial file, even after a crash."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skipnets.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path next to `path`, renamed to it if the block succeeds and removed if it does not.

    The temporary name keeps the suffix, for libraries that choose a format by it. The parent folder is
    created. An existing file is replaced; an existing folder is not.

    Raises:
        UserError: If the path cannot be written.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(final, error) from error
    temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}.tmp{final.suffix}")
    try:
        yield temporary
        temporary.replace(final)
    except OSError as error:
        # Errors of other files in the block pass through. A full disk names no file.
        name = None if error.filename is None else os.fsdecode(error.filename)
        if name is not None and name != str(temporary) and temporary not in Path(name).parents:
            raise
        raise _write_error(final, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _write_error(final: Path, error: OSError) -> UserError:
    return UserError(f"{final} cannot be written: {error.strerror or error}")
