"""Lazy imports: packages import their exports on first use, so that importing a package is fast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from skipnets.errors import needs_extra

__all__ = ["lazy_exports"]


def lazy_exports(
    package: str, names: Mapping[str, str], *, submodules: Collection[str] = (), extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Create a package's `__getattr__` and `__dir__` (PEP 562).

    A missing library becomes an error that names the extra that installs it.

    Args:
        package: The package's `__name__`.
        names: Exported name → the module that defines it.
        submodules: Modules that are exported.
        extra: Extra to name for a missing library, if it installs that library.

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
