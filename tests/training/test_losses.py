from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from skipnets.training import TrainConfig
from skipnets.training.losses import FocalLoss, named_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [0.0, 5.0, -2.0]])
LABELS = torch.tensor([0, 2, 1, 1])
SHARES = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
WEIGHT = torch.tensor([0.5, 2.0, 1.0])


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", [LABELS, SHARES])
def test_without_gamma_it_is_pytorch_s_cross_entropy(
    weight: torch.Tensor | None, smoothing: float, targets: torch.Tensor
) -> None:
    ours = FocalLoss(0.0, weight=weight, label_smoothing=smoothing)(LOGITS, targets)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, targets, weight, label_smoothing=smoothing))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_of_two_classes_it_is_torchvision_s(gamma: float) -> None:
    z = torch.tensor([-2.0, -0.1, 0.0, 1.5, 4.0])
    labels = torch.tensor([0, 1, 1, 0, 1])
    expected = sigmoid_focal_loss(z, labels.float(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(FocalLoss(gamma)(torch.stack([torch.zeros(5), z], 1), labels), expected)


def test_the_closed_form() -> None:
    powers = np.exp(LOGITS.numpy().astype(np.float64))
    p = (powers / powers.sum(1, keepdims=True))[np.arange(4), LABELS.numpy()]
    weight = WEIGHT.numpy()[LABELS.numpy()]
    expected = (-weight * (1 - p) ** 3 * np.log(p)).sum() / weight.sum()
    assert float(FocalLoss(3.0, weight=WEIGHT)(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    half = LOGITS.bfloat16()
    loss = FocalLoss()(half, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, FocalLoss()(half.float(), LABELS))
    assert FocalLoss()(LOGITS.double(), LABELS).dtype == torch.float64


def test_by_name() -> None:
    config = TrainConfig(data="x", out=Path("x"), loss="focal", focal_gamma=1.5, label_smoothing=0.1)
    expected = FocalLoss(1.5, weight=WEIGHT, label_smoothing=0.1)(LOGITS, LABELS)
    torch.testing.assert_close(named_loss(config, WEIGHT)(LOGITS, LABELS), expected)
    plain = TrainConfig(data="x", out=Path("x"))
    torch.testing.assert_close(named_loss(plain, None)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))
