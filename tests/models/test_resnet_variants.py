"""ResNets with other stems, shortcuts, attention and pooling, against timm's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes
from tests.helpers.timm_networks import assert_names_and_shapes_are_timm_s, assert_trains_alike
from torch import nn

from skipnets.errors import UserError
from skipnets.models import create_model, model_config, network_graph
from skipnets.models.accounting import kept_bytes
from skipnets.models.family import family_of
from skipnets.models.resnet_variants import RESNET_VARIANTS

# One of each kind; the others differ in depth and groups.
KINDS = [
    *("resnet14t", "resnet18d", "resnet50s", "seresnet18", "ecaresnet26t", "ecaresnetlight"),
    *("resnetblur18", "resnetblur50d", "resnetaa34d", "seresnetaa50d", "resnetrs50"),
]


@pytest.mark.parametrize(
    "name",
    [
        row.name if row.name in KINDS[:5] else pytest.param(row.name, marks=pytest.mark.slow)
        for row in RESNET_VARIANTS
    ],
)
def test_names_and_shapes_are_timm_s(name: str) -> None:
    assert_names_and_shapes_are_timm_s(name)


def short(name: str, **rates: Any) -> tuple[nn.Module, Any]:
    """timm's network and ours with a block a stage and the same random weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, layers=(1, 1, 1, 1), num_classes=5, **rates)
    ours = create_model(name, block_config=(1, 1, 1, 1), num_classes=5, **rates)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("name", KINDS)
def test_outputs_gradients_and_buffers_are_timm_s(name: str) -> None:
    theirs, ours = short(name, drop_path_rate=0.3)
    assert_trains_alike(theirs, ours, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet14t", {"norm": "group", "in_chans": 1}),
        ("resnetrs50", {"norm": None, "proj_drop_rate": 0.1}),
        ("seresnet18", {"width": 16, "stem": "cifar"}),
        ("ecaresnet26t", {"width": 16, "stem_channels": 48}),
        ("resnet26d", {"width": 16}),
        ("resnetblur18", {"width": 16}),
        ("resnetblur50d", {"width": 16, "stem_pool": "convolution"}),
        ("resnetaa34d", {"width": 16}),
        ("resnetaa34d", {"width": 16, "stem_pool": "convolution"}),
        ("resnet50", {"width": 16, "stride_in": "1x1"}),
    ],
)
def test_the_graph_is_the_module_s_at_any_size(name: str, fields: dict[str, Any]) -> None:
    """Also where maps have odd sides, which timm's averaging blocks do not take."""
    config = model_config(name, block_config=(1, 1, 1), **fields)
    assert_equal_to_the_built_model(config)
    graph = network_graph(config)
    for execution in family_of(config).executions:  # blocks of other parts run layer by layer under any
        assert kept_bytes(graph, (38, 45), 2, execution) == saved_bytes(config, execution, 38, 45)


@pytest.mark.parametrize("name", ["resnetblur18", "resnetaa34d", "resnetaa50"])
def test_the_smallest_image_is_the_smallest_that_runs(name: str) -> None:
    model = create_model(name, width=8).eval()
    smallest = model.config.smallest_size
    with torch.no_grad():
        assert model(torch.zeros(1, 3, smallest, smallest)).shape == (1, 1000)
        with pytest.raises(RuntimeError):
            model._run_stages(torch.zeros(1, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet50d", {"output_stride": 8}, "output_stride=8: needs anti_aliasing=None and another shortcut"),
        ("resnet18", {"stem": "cifar", "stem_pool": "convolution"}, "has no pooling to replace"),
        ("resnet18", {"attention": "cbam"}, "attention='cbam': must be one of 'se', 'eca', None"),
        ("resnet18", {"anti_aliasing": True}, "anti_aliasing=True: must be one of 'blur', 'average', None"),
        ("resnet50", {"stride_in": "2x2"}, "stride_in='2x2': must be one of '3x3', '1x1'"),
        (
            "resnet18",
            {"stride_in": "1x1"},
            'stride_in="1x1": needs block="bottleneck" and anti_aliasing=None',
        ),
        ("resnetblur50d", {"stride_in": "1x1"}, 'stride_in="1x1": needs'),
        ("resnet18", {"se_ratio": 0}, "se_ratio=0: must be above 0"),
        ("resnet18", {"stem": "deep", "stem_channels": 4}, "stem_channels=4: must be a whole number from 8"),
        (
            "densenet121",
            {"stem": "tiered"},
            "stem='tiered': must be one of 'imagenet', 'small', 'cifar', 'deep'",
        ),
    ],
)
def test_impossible_configurations_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_config(name, **fields)


def test_baselines_of_torchvision_are_left_out() -> None:
    for name in ("seresnet50", "resnetaa50", "resnet50d"):
        config = model_config(name)
        assert family_of(config).baseline(config) is None
