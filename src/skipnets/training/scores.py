"""The metrics of an evaluation that a model file records of its training."""

from __future__ import annotations

from typing import Any

from skipnets.evaluation import Evaluation, MultiLabelEvaluation, RegressionEvaluation
from skipnets.evaluation.saving import or_none

__all__ = ["headline_scores"]


def headline_scores(
    evaluation: Evaluation | MultiLabelEvaluation | RegressionEvaluation, what: str
) -> dict[str, Any]:
    """The few metrics that stand for an evaluation, as plain values for JSON; undefined ones are None.

    Args:
        evaluation: Of any task.
        what: What the names begin with, such as "test".
    """
    if isinstance(evaluation, Evaluation):
        return {f"{what}_accuracy": evaluation.metrics.accuracy}
    if isinstance(evaluation, RegressionEvaluation):
        targets = evaluation.metrics.targets
        return {
            f"{what}_{name}": [or_none(value) for value in targets[name]] for name in ("mae", "rmse", "r2")
        }
    macro = evaluation.metrics.macro
    return {f"{what}_{name}": or_none(macro[name]) for name in ("average_precision", "auroc")}
