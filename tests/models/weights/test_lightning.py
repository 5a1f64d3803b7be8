"""Checkpoints that Lightning itself wrote, with metrics, losses and hyperparameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics.classification
from torch import nn

from skipnets.errors import UserError
from skipnets.models.weights import load_weights
from skipnets.models.weights.lightning import is_lightning, without_state

Make = Callable[..., Any]


class Module(pl.LightningModule):
    """As people write them: a network, a weighted loss, a metric that keeps its state, hyperparameters."""

    def __init__(self, net: nn.Module, optimizer: Any = None, **parts: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", *parts])
        self.train_acc = torchmetrics.classification.MulticlassConfusionMatrix(num_classes=5)
        self.train_acc.persistent(True)
        self.net = net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(5))
        for name, part in parts.items():
            self.add_module(name, part)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[pl.LightningModule], Path]:
    """Writes a checkpoint by Lightning's own trainer."""

    def to_file(module: pl.LightningModule) -> Path:
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        trainer.strategy.connect(module)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return to_file


def test_metrics_and_losses_are_left_out_and_listed(
    make: Make, stirred: Make, save: Make, assert_same: Make
) -> None:
    network = make()
    tensors = stirred(network)
    path = save(Module(network))
    model = make()
    report = load_weights(model, path)
    assert_same(model, tensors)
    assert report.layout == "named as in torchvision and timm"
    assert report.prefix == "net."
    assert report.notes == (
        "left out, as no layers of the network 'net': train_acc.confmat, criterion.weight",
    )


def test_hyperparameters_are_not_read(
    make_resnet: Make, stirred: Make, save: Make, assert_same: Make, tmp_path: Path
) -> None:
    """Such as an optimizer that a configuration makes, and, as a trap, what would run."""
    network = make_resnet()
    tensors = stirred(network)
    trap = tmp_path / "ran"
    optimizer = {"make": functools.partial(torch.optim.SGD, lr=0.1), "trap": Payload(trap)}
    path = save(Module(network, optimizer=optimizer))
    model = make_resnet()
    report = load_weights(model, path)
    assert_same(model, tensors)
    assert not trap.exists()
    assert report.notes[0] == "its hyperparameters and callbacks, such as functools.partial, were not read"
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __deepcopy__(self, memo: object) -> Payload:
        return self

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_a_head_of_its_own_is_the_network_s(make: Make, stirred: Make, save: Make, assert_same: Make) -> None:
    network = make()
    tensors = stirred(network)
    head = network.get_classifier()
    network.reset_classifier(0)
    path = save(Module(network, head=head))
    model = make()
    report = load_weights(model, path)
    assert_same(model, tensors)
    assert report.mapping[f"{model.head_name}.weight"] == "head.weight"
    assert report.changes == ()


def test_two_networks_are_not_chosen_between(
    make: Make, stirred: Make, save: Make, assert_same: Make
) -> None:
    network = make()
    tensors = stirred(network)
    path = save(Module(network, teacher=make()))
    message = (
        r"last.ckpt has several networks: net, teacher; weights_ignore must name all but one, such as teacher"
    )
    with pytest.raises(UserError, match=message):
        load_weights(make(), path)
    model = make()
    report = load_weights(model, path, ignore=["teacher.*"])
    assert_same(model, tensors)
    assert len(report.ignored) == len(tensors)


def test_layers_of_a_module_itself_are_all_kept() -> None:
    """A module that is the network: no prefix tells its layers from a loss's weights."""
    tensors = {
        name: torch.ones(2, 2, 1, 1) for name in ("conv1.weight", "layer1.0.weight", "layer1.1.weight")
    }
    tensors |= {"bn1.weight": torch.ones(2), "criterion.weight": torch.ones(2)}
    assert without_state(tensors, "w.ckpt") == (tensors, ())


def test_a_network_alone_needs_no_note() -> None:
    tensors = {"model.conv1.weight": torch.ones(2, 2, 1, 1), "model.bn1.weight": torch.ones(2)}
    assert without_state(tensors, "w.ckpt") == (tensors, ())


def test_what_lightning_writes_is_known() -> None:
    assert is_lightning({"pytorch-lightning_version": "2.6", "state_dict": {}})
    assert not is_lightning({"state_dict": {}})
    assert not is_lightning([])


def test_other_files_stay_strict(make_resnet: Make, stirred: Make, write: Make) -> None:
    network = make_resnet()
    tensors = {f"net.{name}": tensor for name, tensor in stirred(network).items()}
    with pytest.raises(UserError, match=r"criterion\.weight"):
        load_weights(make_resnet(), write({"state_dict": tensors | {"criterion.weight": torch.ones(5)}}))
