"""Deployment: exact rewrites, verified exports, int8 quantization and benchmarks.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.deploy.benchmark import SpeedTable, compare_speeds
    from skipnets.deploy.export import Export, export_model

__all__ = ["Export", "SpeedTable", "compare_speeds", "export_model"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Export": "export",
        "SpeedTable": "benchmark",
        "compare_speeds": "benchmark",
        "export_model": "export",
    },
    extra="deploy",
)
