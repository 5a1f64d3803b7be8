"""RegNet, against timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import group_parameters

from skipnets.models import create_model, network_graph
from skipnets.models.regnet_graph import REGNETS


@pytest.mark.parametrize(
    "name",
    [
        row.name
        if row.name in ("regnetx_002", "regnety_040", "regnety_320")
        else pytest.param(row.name, marks=pytest.mark.slow)
        for row in REGNETS
    ],
)
def test_names_and_shapes_are_timm_s(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    expected = [(key, tuple(value.shape)) for key, value in theirs.state_dict().items()]
    assert [(key, tuple(value.shape)) for key, value in ours.state_dict().items()] == expected
    assert list(network_graph(ours.config).tensors().items()) == expected
    for key in ("num_chs", "reduction"):
        assert [info[key] for info in ours.feature_info] == [info[key] for info in theirs.feature_info]
    for key in ("first_conv", "classifier"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    for coarse in (False, True):
        expected_groups = group_parameters(theirs, theirs.group_matcher(coarse))
        assert group_parameters(ours, ours.group_matcher(coarse)) == expected_groups


@pytest.mark.parametrize("name", ["regnetx_002", "regnety_002"])
def test_outputs_gradients_and_buffers_are_timm_s(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5, drop_path_rate=0.3, zero_init_last=False)
    ours = create_model(name, num_classes=5, drop_path_rate=0.3)
    ours.load_state_dict(theirs.state_dict())
    x, outputs = torch.randn(2, 3, 64, 64), []
    for model in (theirs, ours):
        torch.manual_seed(3)
        outputs.append(model.train()(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        atol = 1e-4 * float(expected.grad.abs().max() + 1e-9)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    x = torch.randn(1, 3, 57, 70)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(ours.forward_intermediates(x, intermediates_only=True), expected)


def test_a_new_network_begins_like_timm_s() -> None:
    theirs, ours = timm.create_model("regnety_002"), create_model("regnety_002")
    for (name, expected), found in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if "conv.weight" in name and expected.numel() > 400:
            spread = [float(parameter.detach().std()) for parameter in (expected, found)]
            assert spread[1] == pytest.approx(spread[0], rel=0.25), name
