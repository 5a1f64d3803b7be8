"""Fit a network's linear head to the features of its initial weights.

N images, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        train: The training images.
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
    task.to(device)
    try:
        fit_head(task.model, ((task.normalize(pixels.to(device)), labels) for pixels, labels, _ in loader))
    finally:
        task.to("cpu")
        loader.close()


def fit_head(model: Backbone[Any], batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the head's weights by those of a logistic regression on the pooled features.

    Args:
        model: Its other parameters and statistics stay as they are.
        batches: Normalized images (N, C, H, W) and labels (N,) to learn from.
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
    scaled = (features - mean) / std
    weight = torch.zeros(head.out_features, scaled.shape[1], device=scaled.device, requires_grad=True)
    bias = torch.zeros(head.out_features, device=scaled.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), labels) + _PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.copy_((weight / std).view_as(head.weight))
        head.bias.copy_(bias - (weight * (mean / std)).sum(1))
