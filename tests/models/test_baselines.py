"""Where torchvision has the network, it is ours with the same tensors and the same answers."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.networks import CLASSIC

from skipnets.models import create_model
from skipnets.models.family import family_of
from skipnets.models.registry import REGISTRY


@pytest.mark.parametrize("name", CLASSIC)
def test_tensors_are_those_of_torchvision(name: str) -> None:
    config = REGISTRY[name]
    with torch.device("meta"):
        baseline = family_of(config).baseline(config)
        ours = create_model(name)
    if baseline is None:
        assert config.default_size == 32 or "_w" in name  # ImageNet's are torchvision's, but for narrow ones
        return
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert {key: tensor.shape for key, tensor in baseline.state_dict().items()} == shapes


@pytest.mark.parametrize("fields", [{"norm": "group"}, {"num_classes": 0}, {"global_pool": "max"}])
@pytest.mark.parametrize("name", ["densenet121", "resnet50"])
def test_what_torchvision_cannot_build(name: str, fields: dict[str, object]) -> None:
    config = create_model(name, **fields).config
    assert family_of(config).baseline(config) is None
