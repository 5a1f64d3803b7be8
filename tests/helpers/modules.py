"""Tests that need a module imported anew, or not importable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["modules_imported_anew"]


@contextmanager
def modules_imported_anew(*prefixes: str, missing: str | None = None) -> Iterator[None]:
    """Let these modules, and those below them, be imported anew; afterwards everything is as it was.

    A module is known in two places: in `sys.modules` and as an attribute of its package. Whoever puts back
    only the first leaves two copies, and a later test changes one and looks at the other.

    Args:
        prefixes: Modules such as `skipnets.training`.
        missing: A library whose import fails meanwhile.
    """

    def concerned() -> dict[str, object]:
        roots = [*prefixes, *([missing] if missing else [])]
        return {
            name: module
            for name, module in sys.modules.items()
            for root in roots
            if f"{name}.".startswith(f"{root}.")
        }

    def parent_of(name: str) -> tuple[object, str]:
        package, _, child = name.rpartition(".")
        return sys.modules.get(package), child

    before = concerned()
    attributes = [
        (parent, child, module)
        for name, module in before.items()
        for parent, child in [parent_of(name)]
        if parent is not None and vars(parent).get(child) is module
    ]

    def remove() -> None:
        for name, module in concerned().items():
            parent, child = parent_of(name)
            if parent is not None and vars(parent).get(child) is module:
                delattr(parent, child)
        for name in concerned():
            del sys.modules[name]

    remove()
    if missing:
        sys.modules[missing] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        remove()
        sys.modules.update(before)  # type: ignore[arg-type]
        for parent, child, module in attributes:
            setattr(parent, child, module)
