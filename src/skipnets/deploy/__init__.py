"""From a classifier file to production: exact rewrites, checked exports, int8, and what each of them gains.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets.deploy.benchmark import SpeedTable, compare_speeds
    from skipnets.deploy.export import Export, export_model

__all__ = ["Export", "SpeedTable", "compare_speeds", "export_model"]

_MODULES = {
    "Export": "export",
    "SpeedTable": "benchmark",
    "compare_speeds": "benchmark",
    "export_model": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
