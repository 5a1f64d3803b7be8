"""What a model file records of an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from skipnets.evaluation import Evaluation
from skipnets.training.scores import headline_scores


def test_the_few_metrics_that_stand_for_an_evaluation() -> None:
    several = SimpleNamespace(
        metrics=SimpleNamespace(macro={"auroc": 0.9, "average_precision": 0.8, "f1": 0.7})
    )
    assert headline_scores(cast(Any, several), "test") == {"test_average_precision": 0.8, "test_auroc": 0.9}
    one = object.__new__(Evaluation)
    object.__setattr__(one, "metrics", SimpleNamespace(accuracy=0.75))
    assert headline_scores(one, "out_of_fold") == {"out_of_fold_accuracy": 0.75}
