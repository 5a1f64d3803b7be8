"""Exports of networks that are no part of the package, against the module itself."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.classifiers import FORMATS, write_class_folders
from tests.helpers.own_networks import Deciding, Doubling, Reordering, TinyNet, se_densenet
from torch import nn

import skipnets
from skipnets.classifier import Classifier, describe
from skipnets.deploy.export import Export, export_model
from skipnets.deploy.graph import write_graph
from skipnets.deploy.own_network import portable, trace_own
from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel
from skipnets.models.registry import config_to_dict
from skipnets.runtimes import open_runtime
from skipnets.runtimes.archive import Archive
from skipnets.runtimes.program import read_program

GRAY = skipnets.Preprocessing(size=(8, 10), channels=1)
SUFFIXES = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 17, 20), dtype=np.uint8))


def settled(network: nn.Module, channels: int = 1) -> nn.Module:
    """A network whose batch norms have seen images."""
    with torch.no_grad():
        network(torch.rand(8, channels, 8, 10))
    return network.eval()


def made(network: nn.Module, **fields: Any) -> Classifier:
    return Classifier.from_model(network, classes=["a", "b", "c"], preprocessing=GRAY, **fields)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Several labels an image, with thresholds."""
    network = settled(TinyNet(3))
    return made(network, task="multi-label", thresholds=(0.5, 0.4, 0.3))


@pytest.fixture(scope="module")
def exported(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_model(classifier, tmp_path_factory.mktemp("own") / "model.onnx")


def test_it_gives_what_the_module_gives_for_any_number_of_images(
    classifier: Classifier, exported: Export
) -> None:
    again = skipnets.load(exported.path)
    for count in (1, 3):
        expected = classifier.logits(classifier.preprocess(IMAGES[:count]))
        found = again.logits(again.preprocess(IMAGES[:count]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(again.embed(IMAGES), classifier.embed(IMAGES), atol=1e-5)
    assert [each.labels for each in again.predict(IMAGES)] == [
        each.labels for each in classifier.predict(IMAGES)
    ]


def test_the_file_carries_what_the_classifier_knows_and_nothing_to_import(exported: Export) -> None:
    again, about = skipnets.load(exported.path), describe(exported.path)
    assert (again.classes, again.task, again.thresholds) == (("a", "b", "c"), "multi-label", (0.5, 0.4, 0.3))
    assert again.preprocessing == GRAY
    assert about["architecture"]["name"] == "TinyNet"
    assert about["parameters"] == sum(parameter.numel() for parameter in TinyNet(3).parameters())
    assert about["export"]["check"]["count"] == about["export"]["check"]["same_labels"] == 24
    with pytest.raises(UserError, match="is an export without a torch module"):
        _ = again.model


@pytest.mark.slow
def test_predicting_needs_no_torch(exported: Export) -> None:
    program = (
        "import sys, numpy, skipnets\n"
        f"classifier = skipnets.load({str(exported.path)!r})\n"
        "print(len(classifier.predict(numpy.zeros((9, 9), numpy.uint8))), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("make", [TinyNet, Reordering, Doubling, se_densenet])
def test_every_format(make: Any, file_format: Any, tmp_path: Path) -> None:
    name = make.__name__
    architecture = {
        "import": f"tests.helpers.own_networks:{name}",
        "arguments": {"num_classes": 3, "in_chans": 1},
    }
    classifier = made(settled(make(3, in_chans=1)), architecture=architecture)
    path = tmp_path / f"model{SUFFIXES[file_format]}"
    again = skipnets.load(export_model(classifier, path, file_format=file_format).path)
    batches = [each.preprocess(IMAGES) for each in (classifier, again)]
    np.testing.assert_allclose(again.logits(batches[1]), classifier.logits(batches[0]), atol=1e-5)
    if make is Reordering:
        with pytest.raises(UserError, match="embed: this export has no features"):
            again.embed(IMAGES)
    else:
        np.testing.assert_allclose(again.embed(IMAGES), classifier.embed(IMAGES), atol=1e-5)


def test_a_pt2_holds_operations_of_the_core_and_tensors(tmp_path: Path) -> None:
    """In-place functions, constants and buffers that are not saved, split maps, a part of the logits."""
    network = settled(Reordering(3, 1))
    classifier = made(network)
    traced = trace_own([classifier.model], GRAY, "uint8")  # type: ignore[list-item]
    write_graph(portable(traced), "pt2", tmp_path / "m.pt2", "{}")
    with closing(Archive(tmp_path / "m.pt2")) as archive:
        program = read_program(archive)
    pixels = torch.randint(256, (3, 1, 8, 10), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (GRAY.mean, GRAY.std))
    with torch.no_grad():
        expected = network((pixels / 255 - mean) / std)
        (found,) = program(pixels)
    torch.testing.assert_close(found, expected)
    # Also those that nothing reads, such as the statistics that a batch norm returns.
    dropped = [name for step in program.steps for name in step.last_used]
    computed = [result for step in program.steps for result in step.results]
    assert sorted([*dropped, *program.outputs]) == sorted(computed)


def test_features_are_those_of_timm_s_methods_and_an_ensemble_averages() -> None:
    config = CustomConfig(name="Net", num_classes=3, in_chans=1)
    models = [CustomModel.around(settled(Doubling(3, 1)), config) for _ in range(2)]
    before = copy.deepcopy(models[0].state_dict())
    program = trace_own(models, GRAY, "float32")
    images = torch.rand(3, 1, 8, 10)
    with torch.no_grad():
        logits, features = program.module()(images)
        each = [model(images).softmax(1) for model in models]
        torch.testing.assert_close(logits.softmax(1), torch.stack(each).mean(0))
        embedded = [model.embed(images) for model in models]
    torch.testing.assert_close(features, torch.cat(embedded, 1))
    torch.testing.assert_close(models[0].state_dict(), before)
    assert not models[0].network.head._forward_pre_hooks


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=r"^export: Deciding cannot be traced by torch\.export .*data-dependent"
    ):
        export_model(made(Deciding(3)), tmp_path / "m.onnx")
    with pytest.raises(
        UserError, match=r"^the model was modified: features\..*denselayer2.conv2 is Sequential"
    ):
        export_model(made(se_densenet(3, 1)), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_the_native_engine_has_one_line(classifier: Classifier) -> None:
    tensors = {name: tensor.numpy() for name, tensor in TinyNet(3).state_dict().items()}
    with pytest.raises(UserError, match="TinyNet has no graph, which this needs"):
        open_runtime(
            "native",
            architecture=config_to_dict(classifier.model.config),
            tensors=tensors,
            device="cpu",
        )


@pytest.mark.slow
def test_int8_works_without_a_graph_of_ours(tmp_path: Path) -> None:
    folders = write_class_folders(tmp_path / "images", ("a", "b", "c"))
    export = export_model(
        made(settled(TinyNet(3, width=16))),
        tmp_path / "int8",
        file_format="openvino",
        int8=True,
        calibration=folders,
        max_drop=100,
    )
    assert export.accuracy is not None
    again = skipnets.load(export.path)
    assert again.export is not None
    assert again.export["int8"] is True
    assert again.logits(again.preprocess(IMAGES)).shape == (3, 3)
