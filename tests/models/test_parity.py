"""Our models and torchvision's are the same function: outputs, gradients and running statistics.

Random weights are compared only after a few train-mode steps on noise: the activations of a fresh deep ResNet
overflow in eval mode, where the running statistics are still 0 and 1.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from skipnets.models import create_model, list_models
from skipnets.models.registry import DENSENETS, RESNETS

IN_TORCHVISION = [name for name in list_models() if name in torchvision.models.list_models()]
FAST = ["densenet121", "resnet18", "resnext50_32x4d"]
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in IN_TORCHVISION]


def settled_pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """torchvision's model with lived-in running statistics, and ours with the same state."""
    theirs = torchvision.models.get_model(name, num_classes=10).to(dtype)
    for _ in range(3):
        theirs(torch.randn(4, 3, 64, 64, dtype=dtype))
    ours = create_model(name, num_classes=10).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def test_torchvision_knows_every_imagenet_model_but_the_264s_and_narrow_ones() -> None:
    ours = {row.name for row in (*DENSENETS, *RESNETS) if row.stem == "imagenet"}
    narrow = {"resnet10", *(f"resnet10_w{width}" for width in (16, 24, 32, 48))}
    assert ours - set(IN_TORCHVISION) == {"densenet264", "densenet264_k48", *narrow}


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_the_state_dict_has_torchvision_s_keys_and_shapes_in_order(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = create_model(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in theirs.items()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_outputs_agree(name: str) -> None:
    theirs, ours = settled_pair(name, torch.float32)
    x = torch.randn(2, 3, 96, 65)
    with torch.no_grad():
        expected, actual = theirs.eval()(x), ours.eval()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_outputs_gradients_and_buffers_agree(name: str) -> None:
    theirs, ours = settled_pair(name, torch.float64)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    labels = torch.tensor([1, 5, 9])
    gradients, inputs = [], []
    for model in (theirs, ours):
        x_leaf = x.clone().requires_grad_()
        F.cross_entropy(model(x_leaf), labels).backward()
        inputs.append(x_leaf.grad)
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    torch.testing.assert_close(inputs[1], inputs[0], rtol=1e-4, atol=1e-9)
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-9, msg=key)
    for key, expected in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], expected, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("output_stride", "replaced"), [(16, [False, False, True]), (8, [False, True, True]), (32, None)]
)
def test_output_stride_is_torchvision_s_dilation(output_stride: int, replaced: list[bool] | None) -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=replaced).eval()
    ours = create_model("resnet50", output_stride=output_stride).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 65, 65)
    trunk = nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), trunk(x), rtol=1e-4, atol=1e-4)
    assert ours.feature_info[-1]["reduction"] == output_stride


def test_zero_init_last_is_torchvision_s_zero_init_residual() -> None:
    for name in ("resnet18", "resnet50"):
        theirs = torchvision.models.get_model(name, zero_init_residual=True).state_dict()
        ours = create_model(name, zero_init_last=True).state_dict()
        zeroed = [
            key for key, value in ours.items() if "bn" in key and key.endswith("weight") and not value.any()
        ]
        assert zeroed == [key for key in zeroed if not theirs[key].any()]
        assert len(zeroed) == sum(create_model(name).config.block_config)


@pytest.mark.parametrize("name", ["densenet121", "resnet50"])
def test_convolutions_start_with_the_papers_spread(name: str) -> None:
    model = create_model(name)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            out_channels, _, height, width = module.weight.shape
            expected = (2 / (out_channels * height * width)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03), key
