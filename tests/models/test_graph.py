"""The graph of a configuration, against the torch module that is built of it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipnets.models import (
    DenseNetConfig,
    ResNetConfig,
    build_model,
    list_models,
    model_config,
    network_graph,
)
from skipnets.models.registry import Pooling


def assert_equal_to_the_built_model(config: DenseNetConfig | ResNetConfig) -> None:
    with torch.device("meta"):
        model = build_model(config)
    built = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    graph = network_graph(config)
    assert list(graph.tensors().items()) == built
    assert graph.parameter_count() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_shapes_are_the_state_dict_s(name: str) -> None:
    assert_equal_to_the_built_model(model_config(name))


@pytest.mark.parametrize("global_pool", get_args(Pooling))
@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet20"])
def test_every_pooling_has_its_shapes(name: str, global_pool: Pooling) -> None:
    config = model_config(name, global_pool=global_pool, num_classes=5 if global_pool else 0)
    assert_equal_to_the_built_model(config)
    graph, model = network_graph(config), build_model(config).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(torch.randn(1, 3, 32, 32)), pre_logits=True)
    assert graph.shapes(32, 32)[graph.features] == features.shape[1:]


norms = st.sampled_from(["batch", "group", None])
stems = st.sampled_from(["imagenet", "cifar"])
stages = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(
    block_config=stages,
    growth_rate=st.integers(1, 9),
    bottleneck=st.sampled_from([None, 1, 4]),
    compression=st.floats(0.01, 1.0),
    stem=stems,
    norm=norms,
    in_chans=st.integers(1, 4),
    num_classes=st.integers(0, 3),
)
def test_shapes_of_any_densenet(**fields) -> None:
    assert_equal_to_the_built_model(DenseNetConfig(name="any", **fields))


@given(
    block_config=stages,
    block=st.sampled_from(["basic", "bottleneck"]),
    width=st.sampled_from([8, 16, 48]),
    groups_and_width=st.sampled_from([(1, 64), (2, 32), (4, 8), (1, 128)]),
    shortcut=st.sampled_from(["projection", "pad"]),
    output_stride=st.sampled_from([None, 4]),
    stem=stems,
    norm=norms,
    in_chans=st.integers(1, 4),
    num_classes=st.integers(0, 3),
)
def test_shapes_of_any_resnet(groups_and_width, **fields) -> None:
    if fields["block"] == "bottleneck":
        fields["groups"], fields["width_per_group"] = groups_and_width
    if fields["stem"] == "cifar" and len(fields["block_config"]) < 3:
        fields["output_stride"] = None
    assert_equal_to_the_built_model(ResNetConfig(name="any", **fields))
