"""Modules as researchers write them: each is trained, saved and loaded, or refused in one line beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers.own_networks import TinyNet
from torch import Tensor, nn

import skipnets
from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel, check_output
from skipnets.training.own_network import check_step, usable_channels_last

IMAGES = torch.zeros(2, 1, 8, 8)


class Viewing(nn.Module):
    """Takes maps as vectors with `view`, as tutorials do: it needs contiguous ones."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.conv(x)).view(len(x), -1))
        return logits


class Lazy(nn.Module):
    """Its layers see at the first call how many features they read."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.LazyConv2d(4, 3),
            nn.LazyBatchNorm2d(),
            nn.LazyLinear(num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.norm(self.conv(x))).flatten(1))
        return logits


class Tied(TinyNet):
    """Two convolutions with one weight, and buffers of every type, also a mask with infinities."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight
        for dtype in (torch.bool, torch.int32, torch.bfloat16, torch.float64, torch.complex64):
            self.register_buffer(str(dtype).replace("torch.", "of_"), torch.ones(2, dtype=dtype))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x: Tensor) -> Tensor:
        assert self.get_buffer("of_bfloat16").dtype == torch.bfloat16
        logits: Tensor = self.head(F.relu(self.second(F.relu(self.first(self.body(x))))).mean((2, 3)))
        return logits


class Remembering(TinyNet):
    """Keeps what it returned last, which is in autograd's graph."""

    last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class Auxiliary(TinyNet):
    """Returns a second output in training, as GoogLeNet does."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Stateful(TinyNet):
    """Has a state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


class Frozen(TinyNet):
    """Nothing of it is trained."""

    def __init__(self) -> None:
        super().__init__(3)
        self.requires_grad_(False)


class Uncopied(TinyNet):
    """A module that cannot be copied."""

    def __deepcopy__(self, _: Any) -> None:
        raise RuntimeError("no copies")


class Detached(TinyNet):
    """Its output is in no graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def model_of(network: nn.Module) -> CustomModel:
    config = CustomConfig(name=type(network).__name__, num_classes=3, in_chans=1)
    return CustomModel.around(network, config)


@pytest.mark.parametrize("make", [TinyNet, Viewing, Lazy, Tied, Remembering])
def test_a_step_changes_nothing(make: Any) -> None:
    model = model_of(make(3))
    check_output(model, IMAGES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check_step(model, IMAGES)
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.autograd.backward(model(IMAGES).square().sum())  # what was lazy is no tensor of inference


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Auxiliary(3), r"must return logits of shape \(2, 3\) in training as in evaluation, not tuple"),
        (Stateful(3), "Stateful has a state besides tensors, which no model file holds: _extra_state"),
        (Frozen(), "Frozen has no parameters to train"),
        (nn.Flatten(), "Flatten has no parameters to train"),
        (Uncopied(3), r"must be something that copy.deepcopy can copy \(no copies\)"),
        (
            Detached(3),
            r"Detached fails in a training step on images of shape \(2, 1, 8, 8\), float32 \(.*grad",
        ),
        (TinyNet(3).double(), r"TinyNet fails in a training step .*, float32 \(.*should be the same"),
    ],
)
def test_what_cannot_be_trained_is_one_line(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        check_step(model_of(network), IMAGES)


def test_double_precision_is_lightning_s() -> None:
    check_step(model_of(TinyNet(3)), IMAGES.double())


def test_a_network_that_takes_contiguous_maps_alone_gets_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "skipnets")
    model = model_of(Viewing())
    assert usable_channels_last(model, IMAGES, None) is False
    assert "channels_last is not used: model: Viewing fails in a training step" in caplog.text
    with pytest.raises(UserError, match=r"^channels_last=True: must be left out"):
        usable_channels_last(model, IMAGES, True)
    for asked in (None, True, False):
        assert usable_channels_last(model_of(TinyNet(3)), IMAGES, asked) is asked


@pytest.mark.parametrize("make", [Lazy, Tied, Remembering])
def test_a_file_makes_the_module_again(make: Any, tmp_path: Path) -> None:
    """By its import and into a module, with the types of its buffers and what parameters share."""
    network = make(3)
    model_of(network)(IMAGES)
    about = {"classes": ["a", "b", "c"], "preprocessing": skipnets.Preprocessing(size=8, channels=1)}
    path, name = tmp_path / "model.safetensors", f"tests.training.test_own_network:{make.__name__}"
    made_by = {"import": name, "arguments": {"num_classes": 3}}
    skipnets.Classifier.from_model(network, architecture=made_by, **about).save(path)  # type: ignore[arg-type]
    batch = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(batch)).numpy()
    for options in ({"trust": name}, {"model": make(3)}):
        loaded: Any = skipnets.load(path, device="cpu", **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(loaded.logits(batch), expected, atol=1e-6)
        if make is Tied:
            assert loaded.model.network.second.weight is loaded.model.network.first.weight
        loaded.model.network(torch.from_numpy(batch))  # in a graph, and explained nevertheless
        assert loaded.embed([np.zeros((8, 8), np.uint8)]).shape[0] == 1


def test_parameters_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = Tied(3)
    about = {"classes": ["a", "b", "c"], "preprocessing": skipnets.Preprocessing(size=8, channels=1)}
    classifier = skipnets.Classifier.from_model(network, **about)  # type: ignore[arg-type]
    classifier.save(tmp_path / "finite.safetensors")
    network.first.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"tensor first\.bias is not finite"):
        classifier.save(tmp_path / "model.safetensors")
