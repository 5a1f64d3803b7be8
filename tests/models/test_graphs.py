"""The graphs of both families; `test_graph` and `test_accounting` hold them to the modules."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from tests.helpers.networks import CLASSIC, EVERY_NETWORK

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.family import FAMILIES, family_of, network_graph, register_family, stage_groups
from skipnets.models.graphs import densenet_graph, resnet_graph
from skipnets.models.operations import Convolution, Linear
from skipnets.models.registry import REGISTRY, model_config


@pytest.mark.parametrize("name", CLASSIC)
def test_a_network_is_as_deep_as_its_name_says(name: str) -> None:
    """The papers count convolutions and the last linear layer, without those of shortcuts."""
    config = REGISTRY[name]
    build = densenet_graph if config.family == "densenet" else resnet_graph
    layers = [
        operation
        for operation in build(config).operations
        if isinstance(operation, Convolution | Linear) and "downsample" not in operation.name
    ]
    found = re.search(r"(?:net|bc|resnext)_?(\d+)", name)
    assert found is not None
    # The published 264 has 265: the paper counts one too few.
    assert len(layers) == int(found[1]) + (found[1] == "264")


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet20"])
def test_stochastic_depth_grows_evenly(name: str) -> None:
    config = model_config(name, drop_path_rate=0.4)
    rates = config.drop_path_rates()
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.4)
    steps = [after - before for before, after in itertools.pairwise(rates)]
    assert steps == pytest.approx([0.4 / (len(rates) - 1)] * len(steps))
    modules = [
        module.p
        for module in create_model(name, drop_path_rate=0.4).modules()
        if type(module).__name__ == "StochasticDepth"
    ]
    assert modules == pytest.approx(rates) or modules == pytest.approx(rates[1:])


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_stage_groups_are_the_maps_that_the_model_promises(name: str) -> None:
    """A group ends where the maps get smaller or the head begins; its last stage is the model's own."""
    config = REGISTRY[name]
    groups = stage_groups(config)
    assert [path for group in groups for path in group] == list(network_graph(config).stages)
    assert len(groups) == 1 + len(config.block_config)
    with torch.device("meta"):
        model = create_model(name)
    assert [path for path, _ in model.named_stages()] == [path for group in groups for path in group]
    assert {info["module"] for info in model.feature_info} <= set(network_graph(config).stages)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_record_is_whole(family: str) -> None:
    record = FAMILIES[family]
    assert record.config.family == family
    assert record.models or family == "custom"  # of which only imports are known
    for config in record.models:
        assert family_of(config) is record
        assert REGISTRY[config.name] == config
    assert record.executions[0] == "plain"
    assert issubclass(record.module(), torch.nn.Module)


def test_a_family_is_registered_once() -> None:
    with pytest.raises(ValueError, match="family 'densenet' already"):
        register_family(FAMILIES["densenet"])


def test_an_unknown_family_lists_the_known_ones() -> None:
    config = model_config("resnet18")
    object.__setattr__(config, "family", "vgg")
    with pytest.raises(UserError, match=r"family='vgg': must be one of .*densenet, resnet"):
        family_of(config)
