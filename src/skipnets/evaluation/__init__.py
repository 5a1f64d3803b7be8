"""Metrics, calibration and confusion matrices of a classifier on images it was not trained on.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.evaluation.calibration import Calibration, calibrate
    from skipnets.evaluation.confusion import draw_confusion
    from skipnets.evaluation.evaluating import Evaluation, evaluate
    from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation
    from skipnets.evaluation.regression_evaluation import RegressionEvaluation
    from skipnets.evaluation.tables import write_table

__all__ = [
    "Calibration",
    "Evaluation",
    "MultiLabelEvaluation",
    "RegressionEvaluation",
    "calibrate",
    "draw_confusion",
    "evaluate",
    "write_table",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Calibration": "calibration",
        "Evaluation": "evaluating",
        "MultiLabelEvaluation": "multi_label_evaluation",
        "RegressionEvaluation": "regression_evaluation",
        "calibrate": "calibration",
        "draw_confusion": "confusion",
        "evaluate": "evaluating",
        "write_table": "tables",
    },
    extra="train",
)
