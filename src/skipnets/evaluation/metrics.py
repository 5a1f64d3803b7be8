"""Metrics from logits and labels; undefined ones (no images to compute them from) are NaN, never 0 or 1.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

from skipnets.evaluation.intervals import share_interval
from skipnets.evaluation.multi_label import group_numbers
from skipnets.evaluation.ratios import defined_mean, ratio
from skipnets.evaluation.reliability import reliability

__all__ = ["Metrics", "measure"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """Metrics of a classifier on labeled images.

    Attributes:
        accuracy: Share of images whose most probable class is correct.
        accuracy_interval: Its 95% confidence interval (Wilson; of groups, as `share_interval` has it).
        balanced_accuracy: Mean recall of the classes that occur.
        top5: Share of images whose true class is among the five most probable; None up to 5 classes.
        nll: Mean negative log-likelihood of the true class, in nats.
        ece: Expected calibration error: the mean difference between confidence and accuracy over 15 bins of
            equal width, weighted by their images (Guo et al. 2017, arXiv 1706.04599, equation 3).
        macro_f1: Mean F1 of the classes that occur.
        macro_auroc: Mean AUROC of the classes for which it is defined.
        precision: (K,) share of the images predicted as this class that belong to it.
        recall: (K,) share of this class's images that are predicted as it.
        f1: (K,) harmonic mean of the two.
        auroc: (K,) probability that an image of this class is ranked above an image of another.
        support: (K,) number of images of this class.
        confusion: (K, K) counts; rows are the true classes, columns the predicted ones.
        groups: Number of groups of images that the interval counts; None where it counts images.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    top5: float | None
    nll: float
    ece: float
    macro_f1: float
    macro_auroc: float
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    auroc: NDArray[np.float64]
    support: NDArray[np.int64]
    confusion: NDArray[np.int64]
    groups: int | None = None


def measure(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    *,
    temperature: float = 1.0,
    groups: NDArray[np.str_] | None = None,
) -> Metrics:
    """Compute all metrics from logits and labels.

    Args:
        logits: (N, K), N at least 1.
        labels: (N,) true classes.
        temperature: Divides the logits.
        groups: (N,) what belongs together, such as a patient; "" for an image alone. The interval counts
            groups, not images, then.
    """
    classes = logits.shape[1]
    scores, target = torch.from_numpy(logits).double() / temperature, torch.from_numpy(labels)
    log_probabilities = scores.log_softmax(1)
    probabilities = log_probabilities.exp()
    confusion = multiclass_confusion_matrix(probabilities, target, classes).numpy()

    top5 = None
    if classes > 5:
        top5 = float(multiclass_accuracy(probabilities, target, classes, "micro", top_k=5))
    correct, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    units = None if groups is None else group_numbers(groups, len(labels))[0]
    recall = ratio(correct, support)
    f1 = ratio(2 * correct, support + predicted)
    auroc = np.array([_auroc(probabilities[:, index], target == index) for index in range(classes)])
    occurs = support > 0
    return Metrics(
        accuracy=float(correct.sum() / len(labels)),
        accuracy_interval=share_interval((probabilities.argmax(1) == target).numpy(), units),
        balanced_accuracy=float(recall[occurs].mean()),
        top5=top5,
        nll=float(-log_probabilities.gather(1, target[:, None]).mean()),
        ece=reliability(probabilities.numpy(), labels).ece,
        macro_f1=float(f1[occurs].mean()),
        macro_auroc=defined_mean(auroc),
        precision=ratio(correct, predicted),
        recall=recall,
        f1=f1,
        auroc=auroc,
        support=support,
        confusion=confusion,
        groups=None if units is None else int(units.max()) + 1,
    )


def _auroc(probabilities: torch.Tensor, is_class: torch.Tensor) -> float:
    if is_class.all() or not is_class.any():
        return math.nan
    return float(binary_auroc(probabilities, is_class.long()))
