"""Serve a classifier over HTTP, with a web page.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.serve.app import create_app
    from skipnets.serve.examples import Example, find_examples
    from skipnets.serve.limits import Limits
    from skipnets.serve.server import run_server

__all__ = ["Example", "Limits", "create_app", "find_examples", "run_server"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Example": "examples",
        "Limits": "limits",
        "create_app": "app",
        "find_examples": "examples",
        "run_server": "server",
    },
    extra="serve",
)
