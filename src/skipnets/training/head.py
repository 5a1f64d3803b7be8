"""Fit a network's linear head to the features of its initial weights.

Shapes: N images, F features, K classes or labels, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import validation_loader
from skipnets.models.backbone import Backbone
from skipnets.training.prepare import Prepared
from skipnets.training.speed import training_device
from skipnets.training.task import ClassificationTask

# From how many images at most the head is fitted.
_IMAGES = 4096

# The penalty on the squared weights of the head, for features of unit variance.
_PENALTY = 1e-3
_ITERATIONS = 100


def fit_head_to(train: ImageDataset, task: ClassificationTask, prepared: Prepared) -> None:
    """Fit the head of a task's network to up to 4,096 training images, on the device that will train.

    Args:
        train: The training images, of numbers with scaled targets.
        task: Its network has its initial weights, and new ones in the head.
        prepared: How images become input, and where.
    """
    device = training_device(prepared.config.accelerator)
    chosen = np.linspace(0, len(train) - 1, min(len(train), _IMAGES)).astype(np.int64)
    loader = validation_loader(
        train.select(chosen),
        prepared.preprocessing,
        batch_size=prepared.config.batch_size,
        workers=prepared.config.workers,
    )
    fit = fit_numbers if train.regression else fit_labels if train.multi_label else fit_classes
    task.to(device)
    try:
        batches = ((task.normalize(pixels.to(device)), labels) for pixels, labels, _ in loader)
        fit_head(task.model, batches, fit)
    finally:
        task.to("cpu")
        loader.close()


def fit_classes(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Logistic regression of one class an image.

    Args:
        features: (N, F) of mean 0 and unit variance.
        labels: (N,).
        classes: K.

    Returns:
        (K, F) weights and (K,) biases.
    """
    return _descended(features, classes, lambda logits: F.cross_entropy(logits, labels))


def fit_labels(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A logistic regression for each label, of the images of which it is known.

    Where all of these have it, or none, the label's weights and bias are 0.

    Args:
        features: (N, F) of mean 0 and unit variance.
        labels: (N, K) with 1 for present, 0 for absent, NaN for unknown.
        classes: K.

    Returns:
        (K, F) weights and (K,) biases.
    """
    varies = ((labels == 1).any(0) & (labels == 0).any(0)).to(features.dtype)
    known = torch.isfinite(labels)
    share = varies * known / known.sum(0).clamp(min=1)
    targets = labels.nan_to_num().to(features.dtype)

    def losses(logits: Tensor) -> Tensor:
        return (share * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()

    return _descended(features, classes, losses)


def fit_numbers(features: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Ridge regression of each target, on the images of which it is known.

    Where it is known of none of these, the target's weights and bias are 0.

    Args:
        features: (N, F) of mean 0 and unit variance.
        targets: (N, T), NaN where unknown.
        classes: T.

    Returns:
        (T, F) weights and (T,) biases.
    """
    weight = features.new_zeros(classes, features.shape[1])
    bias = features.new_zeros(classes)
    every = features.cpu().double()
    for index, column in enumerate(targets.cpu().double().T):
        if not (of := torch.isfinite(column)).any():
            continue
        x, y = every[of], column[of]
        centered = x - x.mean(0)
        penalty = _PENALTY * len(y) * torch.eye(x.shape[1], dtype=x.dtype)
        solution = torch.linalg.solve(centered.T @ centered + penalty, centered.T @ (y - y.mean()))
        weight[index] = solution
        bias[index] = y.mean() - x.mean(0) @ solution
    return weight, bias


def _descended(features: Tensor, classes: int, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The weights and biases of the least loss with its penalty."""
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(F.linear(features, weight, bias)) + _PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


Fit = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(N, F) features, N labels and the number K of outputs → (K, F) weights and (K,) biases."""


def fit_head(model: Backbone[Any], batches: Iterable[tuple[Tensor, Tensor]], fit: Fit = fit_classes) -> None:
    """Replace the head's weights by those of a linear model of the pooled features.

    Args:
        model: Its other parameters and statistics stay as they are.
        batches: Normalized images (N, C, H, W) and labels (N,) or (N, K) to learn from.
        fit: How features of mean 0 and unit variance tell the labels.
    """
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    training = model.training
    model.eval()
    with torch.no_grad():
        found = [
            (model.forward_head(model.forward_features(images), pre_logits=True).float(), labels)
            for images, labels in batches
        ]
    model.train(training)
    features = torch.cat([part for part, _ in found])
    labels = torch.cat([part for _, part in found]).to(features.device)
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    weight, bias = fit((features - mean) / std, labels, head.out_features)
    with torch.no_grad():
        head.weight.copy_((weight / std).view_as(head.weight))
        head.bias.copy_(bias - (weight * (mean / std)).sum(1))
