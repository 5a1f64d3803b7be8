"""What became of a run, to be looked at: its report, and how it compares with others.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipnets.errors import MissingExtraError, missing_extra

if TYPE_CHECKING:
    from skipnets.report.comparison import Comparison, compare
    from skipnets.report.page import write_report

__all__ = ["Comparison", "compare", "write_report"]

_MODULES = {"Comparison": "comparison", "compare": "comparison", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except MissingExtraError as error:  # of a room below; this extra brings those, too
        raise missing_extra("report") from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("skipnets"):
            raise
        raise missing_extra("report") from error
