"""The graph of a configuration, against the torch module that is built of it."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.graphs import assert_equal_to_the_built_model
from tests.helpers.networks import EVERY_NETWORK

from skipnets.models import (
    DenseNetConfig,
    ResNetConfig,
    build_model,
    model_config,
    network_graph,
)
from skipnets.models.registry import Pooling


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_the_graph_of_every_model(name: str) -> None:
    assert_equal_to_the_built_model(model_config(name))


@pytest.mark.parametrize("global_pool", get_args(Pooling))
@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet20"])
def test_every_pooling_has_its_shapes(name: str, global_pool: Pooling) -> None:
    config = model_config(name, global_pool=global_pool, num_classes=5 if global_pool else 0)
    assert_equal_to_the_built_model(config)
    graph, model = network_graph(config), build_model(config).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(torch.randn(1, 3, 32, 32)), pre_logits=True)
    assert graph.shapes((32, 32))[graph.features] == features.shape[1:]


norms = st.sampled_from(["batch", "group", None])
stems = st.sampled_from(["imagenet", "small", "cifar"])
rates = st.sampled_from([0.0, 0.3])
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
    drop_rate=rates,
    proj_drop_rate=rates,
    drop_path_rate=rates,
)
def test_the_graph_of_any_densenet(**fields) -> None:
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
    drop_rate=rates,
    proj_drop_rate=rates,
    drop_path_rate=rates,
)
def test_the_graph_of_any_resnet(groups_and_width, **fields) -> None:
    if fields["block"] == "bottleneck":
        fields["groups"], fields["width_per_group"] = groups_and_width
    if fields["stem"] != "imagenet" and len(fields["block_config"]) < 3:
        fields["output_stride"] = None
    assert_equal_to_the_built_model(ResNetConfig(name="any", **fields))


def test_graphs_need_no_torch() -> None:
    code = """
import sys
from skipnets.models import model_config, network_graph
from skipnets.models.accounting import kept_bytes, macs
graph = network_graph(model_config("densenet121"))
assert kept_bytes(graph, (224, 224), 1, "linear") and macs(graph, (224, 224))
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
