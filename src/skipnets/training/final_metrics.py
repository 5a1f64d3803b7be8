"""Metrics of the test split for loggers, at the end of a training.

Shapes: N images, K classes, labels or targets.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torchmetrics import Metric

from skipnets.errors import one_line
from skipnets.evaluation import Evaluation, MultiLabelEvaluation, RegressionEvaluation
from skipnets.scaling import TargetScale
from skipnets.training.copying import own_copy
from skipnets.training.own_measures import integer_labels, known_numbers

__all__ = ["final_metrics", "log_final_metrics", "own_final_metrics"]

AnyEvaluation = Evaluation | MultiLabelEvaluation | RegressionEvaluation
Say = Callable[[str], object]


def final_metrics(evaluation: AnyEvaluation, scales: Sequence[TargetScale] | None = None) -> dict[str, float]:
    """The metrics of an evaluation as loggers take them, by the names of those of the validation split.

    Args:
        evaluation: Of the test split.
        scales: Of the K targets of a regression.

    Returns:
        `test_NAME` → a number: that of evaluation.json; of several targets, the mean over them, of errors in
        their standard deviations as `val_mae` is. Undefined ones are left out.
    """
    if isinstance(evaluation, RegressionEvaluation):
        targets = evaluation.metrics.targets
        units = [scale.std for scale in scales or ()] if len(evaluation.targets) > 1 else [1.0]
        values = {
            "mae": _mean(targets["mae"] / units),
            "rmse": _mean(targets["rmse"] / units),
            "r2": _mean(targets["r2"]),
        }
    elif isinstance(evaluation, MultiLabelEvaluation):
        of_labels = evaluation.metrics
        values = {
            "loss": of_labels.nll,
            **{name: of_labels.macro[name] for name in ("average_precision", "auroc", "f1")},
            "exact_match": of_labels.exact,
        }
    else:
        metrics = evaluation.metrics
        values = {
            "loss": metrics.nll,
            "accuracy": metrics.accuracy,
            "balanced_accuracy": metrics.balanced_accuracy,
            "macro_f1": metrics.macro_f1,
            "macro_auroc": metrics.macro_auroc,
            "ece": metrics.ece,
        }
    return {f"test_{name}": float(value) for name, value in values.items() if math.isfinite(value)}


def own_final_metrics(
    evaluation: AnyEvaluation, metrics: Mapping[str, Metric], *, say: Say
) -> dict[str, float]:
    """What a program's metrics are on the test split, of what `train` gives them on the validation split.

    Args:
        evaluation: Of the test split. Grades are given rounded, as they are predicted.
        metrics: By name; they are not changed.
        say: Shows a line, of a metric that fails on the test images.

    Returns:
        `test_NAME` → a number; undefined ones and those that fail are left out.
    """
    given = _given(evaluation)
    found = {}
    for name, metric in metrics.items():
        measure = own_copy(metric, "metrics").cpu()
        for each in measure.modules():
            if isinstance(each, Metric):  # one process has evaluated; the others may have ended
                each.distributed_available_fn = _alone
        measure.reset()
        try:
            with warnings.catch_warnings():  # such as of classes that do not occur
                warnings.simplefilter("ignore")
                measure.update(*given)
                value = float(torch.as_tensor(measure.compute()).float().mean())
        except Exception as error:  # whatever a user's metric raises
            say(f"metrics: {name} fails on the test split ({one_line(error)}), and is left out")
            continue
        if math.isfinite(value):
            found[f"test_{name}"] = value
    return found


def log_final_metrics(
    loggers: Sequence[Logger], metrics: Mapping[str, float], *, step: int, say: Say
) -> None:
    """Send metrics of the test split to loggers that Lightning has finalized, as after `Trainer.test`.

    Args:
        loggers: The run's.
        metrics: From `final_metrics` and `own_final_metrics`.
        step: At which the training ended.
        say: Shows a line, of a logger that fails: everything else is written by then.
    """
    for logger in loggers:
        try:
            logger.log_metrics(dict(metrics), step=step)
            logger.finalize("success")
        except Exception as error:  # of a server, a database or the network
            say(
                f"logger: {type(logger).__name__} fails ({one_line(error)}); it lacks the metrics of the "
                "test split, which are in evaluation.json"
            )


def _given(evaluation: AnyEvaluation) -> tuple[Tensor, Tensor]:
    """What a program's metrics are measured from; see `train`."""
    if isinstance(evaluation, RegressionEvaluation):
        return known_numbers(*(_floats(each) for each in (evaluation.predicted, evaluation.numbers)))
    if isinstance(evaluation, MultiLabelEvaluation):
        return _floats(evaluation.probabilities), integer_labels(_floats(evaluation.labels))
    return _floats(evaluation.logits), torch.from_numpy(evaluation.labels)


def _floats(values: NDArray[np.floating[Any]]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _mean(values: NDArray[np.float64]) -> float:
    """Of those that are defined."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _alone() -> bool:
    return False
