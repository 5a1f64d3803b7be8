"""Packages that import what they export when it is first used, so that importing them costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from skipnets.errors import needs_extra

__all__ = ["lazy_exports"]


def lazy_exports(
    package: str, names: Mapping[str, str], *, submodules: Collection[str] = (), extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    A library that is missing becomes the line that says which extra installs it.

    Args:
        package: Its `__name__`.
        names: Exported name → the module of the package that defines it.
        submodules: Modules that are exported themselves.
        extra: Named for a missing library if it is one of the extras that install it.

    Examples:
        >>> __getattr__, __dir__ = lazy_exports(__name__, {"train": "trainer"}, extra="train")
    """

    def get(name: str) -> Any:
        if name not in names and name not in submodules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with needs_extra(extra):
            if name in submodules:
                return import_module(f"{package}.{name}")
            return getattr(import_module(f"{package}.{names[name]}"), name)

    def listing() -> list[str]:
        return sorted({*names, *submodules})

    return get, listing
