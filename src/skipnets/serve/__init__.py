"""A classifier behind HTTP, and a page for people.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipnets.errors import missing_extra

if TYPE_CHECKING:
    from skipnets.serve.app import create_app
    from skipnets.serve.examples import Example, find_examples
    from skipnets.serve.limits import Limits
    from skipnets.serve.server import run_server

__all__ = ["Example", "Limits", "create_app", "find_examples", "run_server"]

_MODULES = {
    "Example": "examples",
    "Limits": "limits",
    "create_app": "app",
    "find_examples": "examples",
    "run_server": "server",
}
_LIBRARIES = ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in _LIBRARIES:
            raise missing_extra("serve") from error
        raise
