"""Compute and memory from the graph, against the flop counter, torchinfo and what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchinfo
from tests.helpers.graphs import saved_bytes
from tests.helpers.networks import EVERY_NETWORK
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skipnets.models import build_model, create_model, model_config, network_graph
from skipnets.models.accounting import grids, kept_bytes, macs, training_bytes
from skipnets.models.family import family_of
from skipnets.models.graph import BLOCK_EXECUTIONS, BlockExecution

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("densenet_bc40_k12", {"block_config": (2, 3)}),
    ("densenet40_k12", {"block_config": (2, 3)}),
    ("densenet40_k12", {"block_config": (2, 1), "norm": "group"}),
    ("densenet121", {"block_config": (2, 1, 2), "norm": None, "in_chans": 1}),
    ("densenet121", {"block_config": (1, 2), "proj_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.1}),
    ("densenet121", {"block_config": (2, 3, 1), "growth_rate": 8, "num_classes": 0, "drop_rate": 0.1}),
    ("densenet121", {"block_config": (2, 2), "drop_path_rate": 0.3}),
    ("resnet20", {"block_config": (1, 2, 1)}),
    ("densenet_bc40_k12", {"block_config": (2, 1), "global_pool": "max"}),
    ("resnet20", {"block_config": (1, 1), "global_pool": "max", "drop_rate": 0.1}),
    ("resnet20", {"block_config": (1, 1), "global_pool": "avgmax"}),
    ("resnet20", {"block_config": (1, 1), "global_pool": "catavgmax", "num_classes": 0}),
    ("resnet20", {"block_config": (1, 1), "global_pool": "", "num_classes": 0}),
    ("resnet18", {"block_config": (1, 2), "width": 8, "proj_drop_rate": 0.2, "drop_path_rate": 0.3}),
    ("resnet50", {"block_config": (1, 2, 1), "width": 16, "output_stride": 8}),
    ("resnet50", {"block_config": (1, 1), "width": 16, "norm": "group"}),
    ("resnext50_32x4d", {"block_config": (1, 1), "num_classes": 0}),
    ("densenet_bc40_k12", {"block_config": (2, 2), "activation": "silu"}),
    ("densenet40_k12", {"block_config": (2, 2), "norm": "instance"}),
    ("resnet20", {"block_config": (1, 1), "norm": "layer2d", "activation": "gelu"}),
    ("resnet20", {"block_config": (1, 1), "norm": "instance", "activation": "hard_swish"}),
    ("densenet_bc40_k12", {"block_config": (2, 1), "norm": "filter-response"}),
    ("resnet20", {"block_config": (1, 1), "norm": "evonorm-s0"}),
]


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_parameters_and_macs_agree_with_torchinfo_and_the_flop_counter(name: str) -> None:
    config = model_config(name)
    graph, size = network_graph(config), config.default_size
    with torch.device("meta"):
        model = build_model(config).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(torch.empty(1, config.in_chans, size, size))
    assert graph.parameter_count() == torchinfo.summary(model, verbose=0).total_params
    assert 2 * sum(macs(graph, (size, size))) == counter.get_total_flops()


@pytest.mark.parametrize(("name", "expected"), [("densenet121", 2.83e9), ("resnet50", 4.09e9)])
def test_macs_are_the_published_ones(name: str, expected: float) -> None:
    """torchvision's documentation gives these numbers as GFLOPS: 2.83 and 4.09."""
    counted = sum(macs(network_graph(model_config(name)), (224, 224)))
    assert counted == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("name", "fields", "execution"),
    [
        (name, fields, execution)
        for name, fields in VARIANTS
        for execution in family_of(model_config(name)).executions
    ],
)
def test_kept_memory_is_what_autograd_saves(
    name: str, fields: dict[str, Any], execution: BlockExecution
) -> None:
    config = model_config(name, **fields)
    assert kept_bytes(network_graph(config), (38, 42), 2, execution) == saved_bytes(config, execution, 38, 42)


@pytest.mark.slow
@pytest.mark.parametrize("execution", BLOCK_EXECUTIONS)
def test_kept_memory_of_densenet121_at_its_default_size(execution: BlockExecution) -> None:
    config = model_config("densenet121")
    expected = kept_bytes(network_graph(config), (224, 224), 4, execution)
    assert expected == saved_bytes(config, execution, 224, 224, batch_size=4)


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc40_k12", "resnet18"])
def test_receptive_field_and_position_are_where_gradients_arrive(name: str) -> None:
    """With all weights positive, every pixel of the receptive field has a gradient, and no other."""
    model = create_model(name, block_config=(1, 1, 1), norm=None).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = nn.AvgPool2d(3, stride=2, padding=1).forward  # type: ignore[method-assign]
    path = model.feature_info[-1]["module"]
    x = torch.full((1, 3, 257, 257), 1.0, requires_grad=True)
    maps = model.forward_intermediates(x, [-1], intermediates_only=True)[0]
    row = maps.shape[2] // 2
    maps[0, :, row, row].sum().backward()
    assert x.grad is not None
    touched = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    graph = network_graph(model.config)
    grid = grids(graph)[graph.stages[path]]
    assert grid.receptive_field == len(touched)
    assert grid.start + grid.step * row == float(touched.float().mean())


def test_training_takes_the_parameters_five_times_and_what_is_kept_twice() -> None:
    graph = network_graph(model_config("densenet_bc40_k12"))
    kept = kept_bytes(graph, (32, 32), 3, "plain")
    assert training_bytes(graph, (32, 32), 3, "plain", parameters=1000) == 5000 + 2 * kept
