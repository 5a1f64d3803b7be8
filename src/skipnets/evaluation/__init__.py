"""How good a classifier is on images it has not seen, in figures that can be trusted.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets.evaluation.calibration import Calibration, calibrate
    from skipnets.evaluation.confusion import draw_confusion
    from skipnets.evaluation.evaluating import Evaluation, evaluate
    from skipnets.evaluation.tables import write_table

__all__ = ["Calibration", "Evaluation", "calibrate", "draw_confusion", "evaluate", "write_table"]

_MODULES = {
    "Calibration": "calibration",
    "Evaluation": "evaluating",
    "calibrate": "calibration",
    "draw_confusion": "confusion",
    "evaluate": "evaluating",
    "write_table": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
