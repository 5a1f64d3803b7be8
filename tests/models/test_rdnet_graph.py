"""RDNet's configuration and graph, against the module."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes
from tests.helpers.networks import SMALL_RDNET as SMALL

from skipnets.errors import UserError
from skipnets.models import RDNetConfig, model_config, network_graph
from skipnets.models.accounting import kept_bytes
from skipnets.models.graph import BLOCK_EXECUTIONS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"drop_path_rate": 0.3, "layer_scale": 0},
        {"proj_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.1},
        {"norm": "group", "stem": "cifar", "in_chans": 1},
        {"norm": None, "layer_scale": 0, "stem": "small"},
        {"norm": "batch", "activation": "hard_swish"},
        {"norm": "instance", "activation": "relu"},
        {"norm": "filter-response"},
        {"norm": "evonorm-s0", "activation": "silu"},
        {"activation": "silu"},
        {"global_pool": "catavgmax"},
        {"global_pool": "", "num_classes": 0},
    ],
)
def test_the_graph_is_the_module_s(fields: dict[str, Any]) -> None:
    config = model_config("rdnet_tiny", **SMALL | fields)
    assert_equal_to_the_built_model(config)
    for execution in BLOCK_EXECUTIONS:
        counted = kept_bytes(network_graph(config), (38, 42), 2, execution)
        assert counted == saved_bytes(config, execution, 38, 42), execution


def test_linear_execution_keeps_less_than_half_and_recomputation_about_a_tenth() -> None:
    plain, linear, recompute = (
        kept_bytes(network_graph(model_config("rdnet_tiny")), (224, 224), 2, execution)
        for execution in BLOCK_EXECUTIONS
    )
    assert linear < 0.5 * plain
    assert recompute < 0.11 * plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "layer"}, "norm='layer': must be one of 'batch', 'group', 'layer2d'"),
        ({"activation": "tanh"}, "activation='tanh': must be one of 'relu', 'silu'"),
        ({"block_config": (1, 1)}, r"growth_rates=.*: must have a value for each of the 2 blocks"),
        ({"halves": (True, True, False)}, "must begin with false"),
        ({"halves": (False, 2, False)}, "must hold true and false only"),
        ({"growth_rates": (8, 0, 8)}, "growth_rates=0: must be a whole number from 1 to 4096"),
        ({"expansion": 0}, "expansion=0: must be above 0"),
        ({"layer_scale": -1}, "layer_scale=-1: must be from 0 to 1"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RDNetConfig(name="any", **SMALL | fields)
