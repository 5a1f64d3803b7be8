"""ResNet for CIFAR against its paper's equation, y = F(x) + x, written out with functions.

torchvision has no such network; those for ImageNet are held to torchvision's in `test_parity`.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.models import create_model


def paper(weights: dict[str, Tensor], images: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """A ResNet of basic blocks and parameter-free shortcuts in eval mode (He et al. 2016, section 4.2)."""

    def normal(name: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    x = normal("bn1", F.conv2d(images, weights["conv1.weight"], padding=1)).clamp(min=0)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], padding=1, stride=stride)
            y = normal(f"{name}.bn1", y).clamp(min=0)
            y = normal(f"{name}.bn2", F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1))
            shortcut = torch.zeros_like(y)
            before = (y.shape[1] - x.shape[1]) // 2
            shortcut[:, before : before + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (y + shortcut).clamp(min=0)
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_it_computes_the_papers_equation(size: tuple[int, int]) -> None:
    blocks = (1, 2, 2)
    model = create_model("resnet20", block_config=blocks, width=6, num_classes=4).double()
    for _ in range(3):
        model(torch.randn(8, 3, *size, dtype=torch.double))  # so that norms have statistics
    for tensor in model.parameters():
        if tensor.ndim == 1:
            torch.nn.init.normal_(tensor, 1, 0.3)
    model.eval()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    torch.testing.assert_close(model(images), paper(model.state_dict(), images, blocks))
