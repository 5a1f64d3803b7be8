"""Small models with telling weights, and ways to write and compare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from skipnets.models import DenseNet, ResNet, create_model

Model = DenseNet | ResNet


def _densenet(**fields: Any) -> Model:
    return create_model(
        "densenet121", **{"growth_rate": 4, "block_config": (2, 2), "num_classes": 5, **fields}
    )


def _resnet(**fields: Any) -> Model:
    return create_model("resnet50", **{"width": 8, "block_config": (2, 2), "num_classes": 5, **fields})


def _resnet_pad(**fields: Any) -> Model:
    return create_model("resnet20", **{"num_classes": 5, **fields})


@pytest.fixture(params=[_densenet, _resnet, _resnet_pad], ids=["dense", "projection", "pad"])
def make(request: pytest.FixtureRequest) -> Callable[..., Model]:
    """Builds one of three small models."""
    return request.param


@pytest.fixture
def make_densenet() -> Callable[..., Model]:
    return _densenet


@pytest.fixture
def make_resnet() -> Callable[..., Model]:
    return _resnet


@pytest.fixture
def make_resnet20() -> Callable[..., Model]:
    return _resnet_pad


@pytest.fixture
def stirred() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Gives every tensor of a model values of its own, so that no mix-up goes unseen, and returns them."""

    def stir(model: nn.Module) -> dict[str, Tensor]:
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
            elif name.endswith("var"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(std=0.25)
        return copied(model)

    return stir


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def snapshot() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Copies a model's tensors."""
    return copied


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Every tensor of a model is there, bit for bit."""

    def check(model: nn.Module, expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
        actual = model.state_dict()
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            if name not in but:
                assert torch.equal(actual[name], tensor), name

    return check


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes something to a file whose name chooses the format."""

    def to_file(value: Any, name: str = "weights.pth", **options: Any) -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({key: t.contiguous() for key, t in value.items()}, path, **options)
        elif path.suffix == ".npz":
            np.savez(path, **{key: tensor.numpy() for key, tensor in value.items()})
        else:
            torch.save(value, path, **options)
        return path

    return to_file
