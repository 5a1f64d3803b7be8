"""A network against timm's of the same name."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from skipnets.models import create_model, network_graph


def assert_names_and_shapes_are_timm_s(name: str) -> tuple[Any, Any]:
    """Of tensors, in the graph too, and of feature maps; timm's network and ours, without memory."""
    with torch.device("meta"):
        theirs: Any = timm.create_model(name)
        ours = create_model(name)
    expected = [(key, tuple(value.shape)) for key, value in theirs.state_dict().items()]
    assert [(key, tuple(value.shape)) for key, value in ours.state_dict().items()] == expected
    assert list(network_graph(ours.config).tensors().items()) == expected
    for key in ("num_chs", "reduction"):
        assert [info[key] for info in ours.feature_info] == [info[key] for info in theirs.feature_info]
    assert ours.pretrained_cfg["first_conv"] == theirs.pretrained_cfg["first_conv"]
    return theirs, ours


def assert_trains_alike(theirs: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """Outputs in training and in evaluation, gradients and buffers of networks with the same weights."""
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(3)  # of the paths that are dropped
        outputs.append(model.train()(images))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        atol = 1e-4 * float(expected.grad.abs().max() + 1e-9)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-5, atol=1e-5)
