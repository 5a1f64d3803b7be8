"""What linear execution keeps for the backward pass, against the plain path."""

from __future__ import annotations

import math

import pytest
import torch
from tests.helpers.block_policies import (
    copy_with,
    make_model,
)
from torch import nn

from skipnets.models import create_model
from skipnets.training.benchmark import saved_bytes

pytestmark = pytest.mark.usefixtures("small_chunks")
# The stem's maps are the largest that are left; without it these bars are not reached.
SAVED = {
    ("densenet121", "linear"): 0.22,
    ("densenet121", "linear-recompute"): 0.06,
    ("densenet_bc100_k12", "linear"): 0.17,
    ("densenet_bc100_k12", "linear-recompute"): 0.05,
}


@pytest.mark.parametrize(("name", "policy"), SAVED)
def test_saved_bytes_against_plain(name, policy):
    model = create_model(name).to(memory_format=torch.channels_last)
    side = 224 if model.config.stem == "imagenet" else 32
    x = torch.randn(1 if side == 224 else 2, 3, side, side).to(memory_format=torch.channels_last)
    plain = saved_bytes(model, x)
    model.set_block_execution(policy)
    assert saved_bytes(model, x) <= SAVED[name, policy] * plain


@pytest.mark.parametrize(
    ("policy", "lowest", "highest"),
    [
        ("plain", 1.4, 2.0),
        ("linear", 0.8, 1.1),
        ("linear-recompute", 0.8, 1.1),
    ],
)
def test_memory_grows_in_proportion_to_the_depth(policy, lowest, highest):
    layers = (6, 24)
    x = torch.randn(2, 3, 16, 16)
    sizes = []
    for count in layers:
        model = create_model("densenet_bc40_k12", block_config=(count,) * 3)
        model.set_block_execution(policy)
        sizes.append(saved_bytes(model, x))
    slope = math.log(sizes[1] / sizes[0]) / math.log(layers[1] / layers[0])
    assert lowest <= slope <= highest


def test_a_layer_that_steps_aside_costs_no_more_than_its_own_features():
    """What is kept for the backward pass: half of a plain block's, where one of twelve layers is gated."""
    kept = {}
    model = make_model("densenet_bc40_k12", block_config=(12,), growth_rate=4)
    layer = model.features.denseblock1.denselayer6
    layer.conv2 = nn.Sequential(layer.conv2, nn.Sigmoid())
    for policy in ("plain", "linear"):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (
                sizes.update({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()}),
                tensor,
            )[1],
            lambda tensor: tensor,
        ):
            output = copy_with(model, policy)(torch.randn(2, 3, 8, 8, dtype=torch.float64))
        kept[policy] = sum(sizes.values())
        del output
    assert kept["linear"] < 0.6 * kept["plain"]
