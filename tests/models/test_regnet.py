"""RegNet, against timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from tests.helpers.timm_networks import assert_names_and_shapes_are_timm_s, assert_trains_alike
from timm.models import group_parameters

from skipnets.models import create_model
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
    theirs, ours = assert_names_and_shapes_are_timm_s(name)
    assert ours.pretrained_cfg["classifier"] == theirs.pretrained_cfg["classifier"]
    for coarse in (False, True):
        expected_groups = group_parameters(theirs, theirs.group_matcher(coarse))
        assert group_parameters(ours, ours.group_matcher(coarse)) == expected_groups


@pytest.mark.parametrize("name", ["regnetx_002", "regnety_002"])
def test_outputs_gradients_and_buffers_are_timm_s(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5, drop_path_rate=0.3, zero_init_last=False)
    ours = create_model(name, num_classes=5, drop_path_rate=0.3)
    ours.load_state_dict(theirs.state_dict())
    assert_trains_alike(theirs, ours, torch.randn(2, 3, 64, 64))
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
