"""Every kind of labels has the task that is made for it, with what its configuration asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.made import made_config, made_dataset

from skipnets.classifier import Classifier
from skipnets.scaling import TargetScale
from skipnets.training.distillation import Teacher
from skipnets.training.multi_label import MultiLabelTask
from skipnets.training.prepare import prepare
from skipnets.training.regression import RegressionTask
from skipnets.training.supplied import Supplied
from skipnets.training.task import ClassificationTask
from skipnets.training.tasks import make_task


@pytest.mark.parametrize(
    ("task", "kind"),
    [("single-label", ClassificationTask), ("multi-label", MultiLabelTask), ("regression", RegressionTask)],
)
def test_what_trains(task: Any, kind: type, tmp_path: Path) -> None:
    images = made_dataset(task)
    weighted = {} if task == "regression" else {"imbalance": "weighted-loss"}
    prepared = prepare(made_config(tmp_path, **weighted), images)
    scales = [TargetScale(mean=0.0, std=1.0)] * 2 if task == "regression" else None
    teacher = Teacher(
        Classifier.from_model(
            prepared.model,
            classes=images.classes,
            preprocessing=prepared.preprocessing,
            task=task,
            scales=scales,
        ),
        classes=images.classes,
        preprocessing=prepared.preprocessing,
        temperature=1,
        share=0.5,
        task=task,
        scales=scales,
    )
    made = make_task(dataclasses.replace(prepared, teacher=teacher), Supplied(), images.split("train"))
    assert type(made) is kind
    assert made.model is prepared.model
    assert made.teacher is teacher
    labels = images.split("train").labels
    if task == "single-label":
        counts = np.bincount(labels)
        torch.testing.assert_close(made.loss.weight, torch.from_numpy(20 / (2 * counts)).float())
    elif task == "multi-label":
        assert isinstance(made, MultiLabelTask)
        expected = torch.from_numpy((labels == 0).sum(0) / (labels == 1).sum(0)).float()
        torch.testing.assert_close(made.label_loss.positive_weights, expected)
    else:
        assert isinstance(made, RegressionTask)
        assert made.scores.unit == 1.0
