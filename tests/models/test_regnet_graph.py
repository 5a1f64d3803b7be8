"""RegNet's configuration and graph, against the module and the paper."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes

from skipnets.errors import UserError
from skipnets.models import RegNetConfig, model_config, network_graph
from skipnets.models.accounting import kept_bytes, macs
from skipnets.models.regnet_graph import REGNETS

SMALL: dict[str, Any] = {"block_config": (1, 2), "widths": (16, 24), "group_size": 8}


def test_macs_are_those_in_the_names() -> None:
    """regnety_040 has 4.0 billion at 224×224."""
    for config in REGNETS:
        named = float(config.name.rpartition("_")[2]) / 10
        counted = sum(macs(network_graph(config), (224, 224))) / 1e9
        assert counted == pytest.approx(named, abs=max(0.06 * named, 0.06)), config.name


@pytest.mark.parametrize(
    "fields",
    [
        {"se_ratio": 0.25, "proj_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.1},
        {"norm": "group", "stem": "cifar", "in_chans": 1},
        {"norm": None, "stem": "small", "se_ratio": 0.01},
        {"norm": "layer2d", "global_pool": "catavgmax"},
        {"global_pool": "", "num_classes": 0},
        {"norm": "filter-response", "activation": "hard_swish"},
        {"norm": "evonorm-s0", "se_ratio": 0.25},
    ],
)
def test_the_graph_is_the_module_s(fields: dict[str, Any]) -> None:
    config = model_config("regnetx_002", **SMALL | fields)
    assert_equal_to_the_built_model(config)
    assert kept_bytes(network_graph(config), (38, 45), 2, "plain") == saved_bytes(config, "plain", 38, 45)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_config": (1,)}, r"widths=.*: must have a value for each of the 1 stages"),
        ({"group_size": 5}, "widths=16: must be a multiple of group_size=5"),
        ({"se_ratio": -1}, "se_ratio=-1: must be from 0 to 1"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RegNetConfig(name="any", **SMALL | fields)
