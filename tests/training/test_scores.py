"""What a model file records of an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from skipnets.evaluation import Evaluation, RegressionEvaluation
from skipnets.training.scores import headline_scores


def test_the_few_metrics_that_stand_for_an_evaluation() -> None:
    several = SimpleNamespace(
        metrics=SimpleNamespace(macro={"auroc": 0.9, "average_precision": 0.8, "f1": 0.7})
    )
    assert headline_scores(cast(Any, several), "test") == {"test_average_precision": 0.8, "test_auroc": 0.9}
    numbers = object.__new__(RegressionEvaluation)
    targets = {"mae": np.array([1.0, 2.0]), "rmse": np.array([3.0, 4.0]), "r2": np.array([0.5, 0.25])}
    object.__setattr__(numbers, "metrics", SimpleNamespace(targets=targets))
    assert headline_scores(numbers, "test") == {
        "test_mae": [1.0, 2.0],
        "test_rmse": [3.0, 4.0],
        "test_r2": [0.5, 0.25],
    }
    targets["r2"][1] = np.nan  # as of numbers that are all equal: JSON has no NaN
    assert headline_scores(numbers, "test")["test_r2"] == [0.5, None]
    several.metrics.macro["auroc"] = float("nan")
    assert headline_scores(cast(Any, several), "test")["test_auroc"] is None
    one = object.__new__(Evaluation)
    object.__setattr__(one, "metrics", SimpleNamespace(accuracy=0.75))
    assert headline_scores(one, "out_of_fold") == {"out_of_fold_accuracy": 0.75}
