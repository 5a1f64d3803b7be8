"""The graph of a configuration, against the torch module that is built of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipnets.models import (
    DenseNetConfig,
    ResNetConfig,
    build_model,
    list_models,
    model_config,
    network_graph,
)
from skipnets.models.registry import ModelConfig, Pooling

ALL = [pytest.param(name, marks=pytest.mark.slow if name == "resnet1202" else ()) for name in list_models()]


def assert_equal_to_the_built_model(config: ModelConfig) -> None:
    """Names, shapes and order of tensors, of modules that run, and of what they give."""
    graph = network_graph(config)
    with torch.device("meta"):
        model = build_model(config)
    built = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert list(graph.tensors().items()) == built
    assert graph.parameter_count() == sum(parameter.numel() for parameter in model.parameters())
    assert list(graph.stages) == [path for path, _ in model.stages()]
    assert graph.values[graph.features].channels == model.num_features

    height, width = config.smallest_size + 12, config.smallest_size + 17
    ran = _run(model, (config.in_chans, height, width))
    shapes = graph.shapes(height, width)
    paths = dict(model.named_modules())
    told = [(operation.name, shapes[operation.output]) for operation in graph.operations]
    # A concatenation or addition has the name of the module that contains it, which is no leaf.
    told = [(path, shape) for path, shape in told if path in paths and not _parts(paths[path])]
    last = [
        entry
        for entry, following in zip(told, [*told[1:], ("", ())], strict=True)
        if entry[0] != following[0]
    ]
    assert last == [entry for entry in ran if not _parts(paths[entry[0]]) and _computes(paths[entry[0]])]
    outputs = dict(ran)
    for scope in graph.scopes:
        if scope.kind != "stem":
            assert shapes[graph.operations[scope.stop - 1].output] == outputs[scope.path]
    for path, value in graph.stages.items():
        assert shapes[value] == outputs[path]
    assert shapes[graph.logits] == outputs[""]


def _run(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Path and output shape of every module, in the order in which they end."""
    ran: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str) -> Any:
        return lambda _module, _inputs, output: ran.append((path, tuple(output.shape[1:])))

    for path, module in model.named_modules():
        module.register_forward_hook(note(path))
    with torch.device("meta"), torch.no_grad():
        model.eval()(torch.empty(2, *shape))  # Group norm refuses one value a group.
    return ran


def _parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _computes(module: nn.Module) -> bool:
    """Not an identity, nor dropout or stochastic depth of rate 0."""
    return not isinstance(module, nn.Identity) and getattr(module, "p", 1) > 0


@pytest.mark.parametrize("name", ALL)
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
    assert graph.shapes(32, 32)[graph.features] == features.shape[1:]


norms = st.sampled_from(["batch", "group", None])
stems = st.sampled_from(["imagenet", "cifar"])
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
    if fields["stem"] == "cifar" and len(fields["block_config"]) < 3:
        fields["output_stride"] = None
    assert_equal_to_the_built_model(ResNetConfig(name="any", **fields))
