"""Imports that files name, and which of them may run: those that the user has named as well.

A model file or a run's configuration may say that its network is `package.module:Class`. Importing that runs
code, so it is done only within `trusting("package.module:Class")`. The arguments are the file's: only what is
harmless with any arguments should be trusted, which `torch.hub:load` is not.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeGuard

from skipnets.errors import UserError, one_line

__all__ = ["MissingNetworkError", "Trust", "import_trusted", "is_import", "trusted_imports", "trusting"]

Trust = str | Sequence[str] | None
"""One import (`"package.module:Class"`), several, or none."""

_IMPORT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_TRUSTED: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


class MissingNetworkError(UserError):
    """A file's network cannot be made: it is no part of the package, and neither trusted nor given.

    The caller adds the name of the file.
    """


def is_import(name: object) -> TypeGuard[str]:
    """Whether a name has the form `package.module:Class`."""
    return isinstance(name, str) and _IMPORT.fullmatch(name) is not None


@contextlib.contextmanager
def trusting(trust: Trust) -> Iterator[None]:
    """Context manager within which some imports may run, beside those that may already.

    Raises:
        UserError: If one of them does not have the form of an import.
    """
    names = (trust,) if isinstance(trust, str) else tuple(trust or ())
    for name in names:
        if not is_import(name):
            raise UserError(f"trust={name!r}: must be an import such as package.module:Class")
    token = _TRUSTED.set((*_TRUSTED.get(), *names))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trusted_imports() -> tuple[str, ...]:
    """The imports that may run here, for a process that is started from here."""
    return _TRUSTED.get()


def import_trusted(name: str) -> Callable[..., Any]:
    """Import the class or function that a file names.

    The current folder is searched after Python's own path.

    Args:
        name: `package.module:Class`.

    Raises:
        MissingNetworkError: If the user has not named it.
        UserError: If it cannot be imported, or cannot be called.
    """
    trusted = _TRUSTED.get()
    if name not in trusted:
        instead = f", which {', '.join(trusted)} is not" if trusted else ""
        raise MissingNetworkError(
            f"its network is {name}, which is no part of skipnets{instead}: load it with "
            f'trust="{name}" (--trust {name}), which imports and runs that'
        )
    module, _, path = name.partition(":")
    try:
        found: Any = _import(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module raises as it is imported
        raise UserError(f"trust={name}: cannot be imported ({one_line(error)})") from error
    if not callable(found):
        raise UserError(f"trust={name}: must be a class or function, not {type(found).__name__}")
    return found


def _import(module: str) -> Any:
    here = str(Path.cwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] or here in sys.path:
            raise
    sys.path.append(here)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(here)  # the module may have appended folders of its own, which stay
