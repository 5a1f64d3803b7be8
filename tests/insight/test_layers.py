"""The rows of a summary, against modules that run."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from skipnets.insight.layers import inside, layers
from skipnets.models import create_model, model_config, network_graph

VARIANTS = [
    ("densenet_bc40_k12", {"block_config": (2, 3)}),
    ("densenet40_k12", {"block_config": (2, 1), "norm": "group"}),
    ("densenet121", {"block_config": (2, 1, 2), "norm": None, "in_chans": 1}),
    ("densenet121", {"block_config": (1, 2), "drop_path_rate": 0.3}),
    ("resnet20", {"block_config": (1, 2, 1)}),
    ("resnet18", {"block_config": (1, 2), "width": 8, "drop_path_rate": 0.3}),
    ("resnet50", {"block_config": (1, 2, 1), "width": 16, "output_stride": 8}),
    ("resnext50_32x4d", {"block_config": (1, 1), "num_classes": 0}),
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_every_row_has_the_shapes_and_parameters_of_its_module(name: str, fields: dict[str, object]) -> None:
    model = create_model(name, **fields).eval()
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(path: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            shapes[path] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

        return hook

    modules = dict(model.named_modules())
    for path, module in modules.items():
        module.register_forward_hook(note(path))
    with torch.no_grad():
        model(torch.zeros(1, model.config.in_chans, 37, 44))
    rows = layers(network_graph(model.config), (37, 44))
    for row in rows:
        assert (row.input, row.output) == shapes[row.path], row.path
        assert row.parameters == sum(parameter.numel() for parameter in modules[row.path].parameters())
    left_out = {type(modules[path]) for path in set(modules) - {row.path for row in rows} - {"", "features"}}
    assert left_out <= {nn.Identity, nn.Dropout, StochasticDepth}


def test_rows_are_nested_as_modules_are() -> None:
    rows = layers(network_graph(model_config("resnet18")), (64, 64))
    (stage,) = (row for row in rows if row.path == "layer2")
    blocks = inside(rows, stage)
    assert [(row.path, row.kind, row.depth) for row in blocks] == [
        ("layer2.0", "residual block", 2),
        ("layer2.1", "residual block", 2),
    ]
    assert [row.path.rpartition(".")[2] for row in inside(rows, blocks[0])] == [
        "conv1", "bn1", "relu1", "conv2", "bn2", "downsample", "relu2",
    ]  # fmt: skip
    assert sum(row.macs for row in blocks) == stage.macs
    assert sum(row.kept for row in inside(rows, blocks[0])) == blocks[0].kept


@pytest.mark.parametrize("name", ["densenet264", "densenet_bc250_k24", "resnet1202"])
def test_the_deepest_models_take_under_a_second(name: str) -> None:
    def seconds() -> float:
        start = time.process_time()
        layers(network_graph(model_config(name)), (224, 224))
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 1
