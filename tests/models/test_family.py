"""What the table of families says, held to the modules."""

from __future__ import annotations

import pytest
import torch

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.family import FAMILIES, family_of, network_graph, register_family, stage_groups
from skipnets.models.registry import REGISTRY, list_models, model_config


@pytest.mark.parametrize("name", list_models())
def test_stage_groups_are_the_maps_that_the_model_promises(name: str) -> None:
    """A group ends where the maps get smaller or the head begins; its last stage is the model's own."""
    config = REGISTRY[name]
    groups = stage_groups(config)
    assert [path for group in groups for path in group] == list(network_graph(config).stages)
    assert len(groups) == 1 + len(config.block_config)
    with torch.device("meta"):
        model = create_model(name)
    assert [path for path, _ in model.stages()] == [path for group in groups for path in group]
    assert {info["module"] for info in model.feature_info} <= set(network_graph(config).stages)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_record_is_whole(family: str) -> None:
    record = FAMILIES[family]
    assert record.config.family == family
    assert record.models
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
    with pytest.raises(UserError, match=r"family='vgg': this version knows .*densenet, resnet"):
        family_of(config)
