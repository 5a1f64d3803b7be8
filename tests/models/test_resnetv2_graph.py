"""The configuration and graph of pre-activation ResNets, against the module and the published counts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes

from skipnets.errors import UserError
from skipnets.models import model_config, network_graph
from skipnets.models.accounting import grids, kept_bytes

SMALL: dict[str, Any] = {"block_config": (1, 2), "width": 8}


def test_counts_are_the_published_ones() -> None:
    """Those of the model cards of timm's weights, in millions."""
    published = {"resnetv2_50": 25.5, "resnetv2_50x1_bit": 25.5, "resnetv2_50x3_bit": 217.3}
    for name, millions in (published | {"resnetv2_101x1_bit": 44.5}).items():
        counted = network_graph(model_config(name)).parameter_count() / 1e6
        assert counted == pytest.approx(millions, abs=0.05), name


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnetv2_18d", {"proj_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.1}),
        ("resnetv2_18", {"norm": None, "stem": "small", "in_chans": 1}),
        ("resnetv2_50t", {"width": 16, "global_pool": "catavgmax"}),
        ("resnetv2_50x1_bit", {"stem_channels": 24}),
        ("resnetv2_50", {"norm": "layer2d", "stem": "cifar", "standardized_weights": True}),
        ("resnetv2_50d_gn", {"global_pool": "", "num_classes": 0}),
        ("resnetv2_50d", {"norm": "evonorm-s0"}),
        ("resnetv2_18", {"norm": "filter-response", "stem": "small"}),
        ("resnetv2_18", {"norm": "instance", "activation": "silu"}),
    ],
)
def test_the_graph_is_the_module_s(name: str, fields: dict[str, Any]) -> None:
    config = model_config(name, **SMALL | fields)
    assert_equal_to_the_built_model(config)
    assert kept_bytes(network_graph(config), (38, 45), 2, "plain") == saved_bytes(config, "plain", 38, 45)


def test_a_border_of_zeros_moves_no_map() -> None:
    """The pooling lies where it would lie with padding of its own."""
    graphs = [network_graph(model_config("resnetv2_50", zero_border=zeros)) for zeros in (False, True)]
    first, second = ([grids(graph)[value] for value in graph.stages.values()] for graph in graphs)
    assert second == first[:1] + second[1:2] + first[1:]
    assert second[1].start == -second[1].step


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shortcut": "pad"}, "shortcut='pad': must be one of 'projection', 'average'"),
        ({"stem": "cifar", "zero_border": True}, 'zero_border=True: a stem="cifar" has no pooling'),
        ({"stem": "tiered", "stem_channels": 2}, 'stem_channels=2, width=64: too few for stem="tiered"'),
        ({"standardized_weights": 1}, "standardized_weights=1: must be true or false"),
        ({"norm": "layer"}, "norm='layer': must be one of"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_config("resnetv2_50", **fields)
