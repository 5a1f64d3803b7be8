"""The metrics of an evaluation that a model file records of its training."""

from __future__ import annotations

from typing import Any

from skipnets.evaluation import Evaluation, MultiLabelEvaluation

__all__ = ["headline_scores"]


def headline_scores(evaluation: Evaluation | MultiLabelEvaluation, what: str) -> dict[str, Any]:
    """The few metrics that stand for an evaluation, as plain values.

    Args:
        evaluation: Of any task.
        what: What the names begin with, such as "test".
    """
    if isinstance(evaluation, Evaluation):
        return {f"{what}_accuracy": evaluation.metrics.accuracy}
    macro = evaluation.metrics.macro
    return {f"{what}_{name}": macro[name] for name in ("average_precision", "auroc")}
