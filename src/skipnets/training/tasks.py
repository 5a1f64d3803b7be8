"""Which task trains a run: that of classes, of several labels an image, or of numbers."""

from __future__ import annotations

from typing import Any

import torch

from skipnets.data.dataset import ImageDataset
from skipnets.training.multi_label import MultiLabelTask, positive_weights
from skipnets.training.prepare import Prepared, class_weights
from skipnets.training.regression import RegressionTask, target_scales
from skipnets.training.supplied import Supplied
from skipnets.training.task import ClassificationTask

__all__ = ["make_task"]


def make_task(prepared: Prepared, supplied: Supplied, train_images: ImageDataset) -> ClassificationTask:
    """What Lightning trains.

    Args:
        prepared: What the run starts with; its network is trained.
        supplied: What a program hands over beside the configuration.
        train_images: The training images, their targets not yet scaled.
    """
    config, model = prepared.config, prepared.model
    given: dict[str, Any] = {
        "teacher": prepared.teacher,
        "loss": supplied.loss,
        "metrics": supplied.metrics,
    }
    if train_images.regression:
        return RegressionTask(model, config, target_scales(config, train_images), **given)
    weighted = config.imbalance == "weighted-loss"
    if train_images.multi_label:
        weights = positive_weights(train_images.labels) if weighted else None
        return MultiLabelTask(model, config, weights, **given)
    classes = len(train_images.classes)
    weights = torch.from_numpy(class_weights(train_images.labels, classes)) if weighted else None
    return ClassificationTask(model, config, weights, **given)
