"""torchxrayvision's checkpoints: equal outputs, its labels and thresholds, its scale of pixels."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import skipnets
from skipnets import Classifier
from skipnets.data import open_dataset
from skipnets.errors import UserError
from skipnets.models import DenseNet, create_model
from skipnets.models.weights.checkpoint import Checkpoint
from skipnets.models.weights.torchxrayvision import LABELS, PUBLISHED, completed
from skipnets.training import TrainConfig
from skipnets.training.prepare import prepare

SMALL: dict[str, Any] = {"block_config": (1, 1, 1, 1), "growth_rate": 8, "stem_channels": 16}
NIH = PUBLISHED["densenet121-res224-nih"]


# torchxrayvision's network: torchvision's with one channel, 18 outputs, and a buffer of thresholds.
SOURCE = """
import torch, torchvision

class DenseNet(torchvision.models.DenseNet):
    def __init__(self):
        super().__init__(8, (1, 1, 1, 1), 16, num_classes=18)
        self.features.conv0 = torch.nn.Conv2d(1, 16, 7, stride=2, padding=3, bias=False)
        self.register_buffer("op_threshs", None)
"""


def op_norm(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """As torchxrayvision documents it: linear on both sides of the threshold, which becomes 0.5."""
    low = probabilities / (2 * thresholds)
    high = 1 - (1 - probabilities) / (2 * (1 - thresholds))
    return torch.where(probabilities < thresholds, low, high)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """A stand-in for `torchxrayvision.models`, which is not there when its files are loaded."""
    module = types.ModuleType("torchxrayvision.models")
    file = tmp_path_factory.mktemp("package") / "models.py"
    file.write_text(SOURCE)
    module.__file__ = str(file)
    exec(compile(SOURCE, file, "exec"), vars(module))
    return module


@pytest.fixture(scope="module")
def theirs(package: types.ModuleType) -> nn.Module:
    torch.manual_seed(0)
    model = package.DenseNet()
    nn.init.normal_(model.classifier.weight, std=0.3)
    nn.init.normal_(model.classifier.bias)
    return model.eval()


@pytest.fixture(scope="module")
def module_file(
    theirs: nn.Module, package: types.ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As they are published: a whole pickled module in torch's old format, with its source code."""
    path = tmp_path_factory.mktemp("published") / NIH.file
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "torchxrayvision", types.ModuleType("torchxrayvision"))
        patched.setitem(sys.modules, package.__name__, package)
        torch.save(theirs, path, _use_new_zipfile_serialization=False)
    assert b"torchxrayvision.models\nDenseNet" in path.read_bytes()
    assert b"self.register_buffer" in path.read_bytes()
    return path


def test_a_published_file_has_its_labels_thresholds_and_outputs(
    module_file: Path, theirs: nn.Module, tmp_path: Path
) -> None:
    """On an image: the same probabilities, and those labels present that `op_norm` puts at 0.5 or above."""
    model = create_model("densenet121", weights=module_file, **SMALL).eval()
    classifier = Classifier.from_model(model)
    trained = [index for index, value in enumerate(NIH.thresholds) if value is not None]
    assert classifier.task == "multi-label"
    assert classifier.classes == tuple(LABELS[index] for index in trained)
    assert classifier.thresholds == tuple(NIH.thresholds[index] for index in trained)
    assert (model.num_classes, model.in_chans) == (14, 1)
    assert model.weights_report is not None
    assert "Lung Lesion, Fracture, Lung Opacity, Enlarged Cardiomediastinum" in model.weights_report.notes[0]

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    scaled = (2 * (pixels.astype(np.float32) / 255) - 1.0) * 1024  # torchxrayvision.utils.normalize
    assert np.array_equal(classifier.preprocess([tmp_path / "x.png"])[0, 0], scaled)
    with torch.inference_mode():
        expected = torch.sigmoid(theirs(torch.from_numpy(scaled)[None, None])[0])
    [prediction] = classifier.predict(tmp_path / "x.png")
    probabilities = dict(prediction.ranking)
    thresholds = torch.tensor([math.nan if value is None else value for value in NIH.thresholds])
    present = op_norm(expected, thresholds) >= 0.5
    for index in trained:
        assert probabilities[LABELS[index]] == pytest.approx(float(expected[index]), abs=1e-5)
        assert (LABELS[index] in prediction.labels) == bool(present[index])
    assert 0 < len(prediction.labels) < 14

    classifier.save(tmp_path / "m.safetensors")
    assert skipnets.load(tmp_path / "m.safetensors").thresholds == classifier.thresholds


def test_a_larger_image_is_resized_alike(module_file: Path) -> None:
    """At 224 pixels, with torchxrayvision's antialiased bilinear resize."""
    preprocessing = Classifier.from_model(
        create_model("densenet121", weights=module_file, **SMALL)
    ).preprocessing
    image = Image.effect_noise((300, 300), 60)
    square = np.asarray(image, dtype=np.float32)
    resized = nn.functional.interpolate(
        torch.from_numpy((2 * square / 255 - 1) * 1024)[None, None],
        (224, 224),
        mode="bilinear",
        antialias=True,
    )
    # Half a level of 8 bits, to which images are resized here, and the interpolation's own rounding.
    assert np.abs(preprocessing(image)[0] - resized[0, 0].numpy()).max() <= 1.05 * 2048 / 255


def test_a_state_dict_with_thresholds_needs_no_name(theirs: nn.Module, tmp_path: Path) -> None:
    thresholds = torch.full((18,), 0.3)
    thresholds[2] = math.nan
    torch.save(theirs.state_dict() | {"op_threshs": thresholds}, tmp_path / "own.pt")
    model = create_model("densenet121", weights=tmp_path / "own.pt", **SMALL)
    assert isinstance(model, DenseNet)
    assert model.weights_report is not None
    assert model.weights_report.labels is not None
    assert "Infiltration" not in model.weights_report.labels.names
    assert model.weights_report.labels.thresholds == (pytest.approx(0.3),) * 17
    others = [index for index in range(18) if index != 2]
    assert torch.equal(model.classifier.weight, theirs.classifier.weight[others])


def test_other_classes_keep_no_labels(theirs: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / NIH.file
    torch.save(theirs.state_dict(), path)
    model = create_model("densenet121", weights=path, num_classes=3, in_chans=3, **SMALL)
    assert model.weights_report is not None
    assert model.weights_report.labels is None
    assert len(model.weights_report.changes) == 2  # head and first convolution
    with pytest.raises(UserError, match="classes: must be given"):
        Classifier.from_model(model)


@pytest.mark.parametrize(
    ("weight", "thresholds"),
    [
        (torch.ones(3, 4), torch.ones(3)),
        (torch.ones(3, 4), torch.ones(18)),
        (torch.ones(()), torch.ones(18)),
        (torch.ones(18, 4), torch.full((18,), math.nan)),
    ],
)
def test_thresholds_of_unknown_labels_are_left_out(weight: Tensor, thresholds: Tensor) -> None:
    tensors = {"classifier.weight": weight, "op_threshs": thresholds}
    found = completed(Path("w.pt"), Checkpoint(source="w.pt", tensors=tensors, ordered=True))
    assert list(found.tensors) == ["classifier.weight"]
    assert found.labels is None
    assert found.notes[0].startswith("op_threshs left out")


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: nn.Module) -> None:
    """A download goes where torchxrayvision looks for it, and what is there is not downloaded."""
    asked = []

    def download(url: str, path: str) -> None:
        asked.append(url)
        raise OSError("no network here")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"must be xrv:NAME with one of .*did you mean densenet121-res224-all"
    ):
        create_model("densenet121", weights="xrv:densenet121-res224-al")
    with pytest.raises(UserError, match=r"could not be downloaded .*you can download it to .*models_data"):
        create_model("densenet121", weights="xrv:densenet121-res224-nih")
    assert asked == [f"https://github.com/mlmed/torchxrayvision/releases/download/v1/{NIH.file}"]
    torch.save(theirs.state_dict(), tmp_path / ".torchxrayvision" / "models_data" / NIH.file)
    model = create_model("densenet121", weights="xrv:densenet121-res224-nih", **SMALL)
    assert model.weights_report is not None
    assert model.weights_report.source == "xrv:densenet121-res224-nih"
    assert model.num_classes == 14


def test_training_from_them_reads_gray(theirs: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / NIH.file
    torch.save(theirs.state_dict(), path)
    options = SMALL | {"block_config": list(SMALL["block_config"])}
    config = TrainConfig(
        data="digits",
        out=tmp_path / "run",
        model="densenet121",
        model_options=options,
        weights=str(path),
        recipe="finetune",
        block_execution="plain",
        epochs=1,
    )
    prepared = prepare(config, open_dataset("digits"))
    assert prepared.config.channels == 1
    assert (prepared.config.mean, prepared.config.std) == ((0.5,), (1 / 2048,))
    assert prepared.preprocessing.size == (224, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_is_torchxrayvisions(name: str) -> None:
    package = pytest.importorskip("torchxrayvision")
    row = package.models.model_urls[name]
    published = PUBLISHED[name]
    assert row["weights_url"].endswith(f"/releases/download/v1/{published.file}")
    assert row["input_resolution"] == published.size
    assert package.models.model_urls["all"]["labels"] == list(LABELS)
    for label, theirs, ours in zip(row["labels"], row["op_threshs"], published.thresholds, strict=True):
        assert math.isnan(theirs) == (ours is None)
        assert ours is None or (ours == pytest.approx(theirs) and label)


@pytest.mark.slow
def test_outputs_are_those_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in a file as published: their network with `op_norm`, against ours with thresholds."""
    package = pytest.importorskip("torchxrayvision")
    torch.manual_seed(0)
    monkeypatch.setenv("HOME", str(tmp_path))
    random = package.models.DenseNet(num_classes=18, in_channels=1)
    random(torch.randn(8, 1, 64, 64) * 300)  # running statistics
    nn.init.normal_(random.classifier.bias, std=2)
    cache = tmp_path / ".torchxrayvision" / "models_data"
    cache.mkdir(parents=True)
    torch.save(random.eval(), cache / NIH.file, _use_new_zipfile_serialization=False)
    theirs = package.models.DenseNet(weights="densenet121-res224-nih")

    classifier = Classifier.from_model(
        create_model("densenet121", weights="xrv:densenet121-res224-nih").eval()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224), dtype=np.uint8)
    inputs = torch.from_numpy(np.stack([package.utils.normalize(each, 255)[None] for each in pixels]))
    with torch.inference_mode():
        expected = theirs(inputs)
    assert classifier.thresholds is not None
    for image, row in zip(pixels, expected, strict=True):
        [prediction] = classifier.predict(Image.fromarray(image))
        theirs_by_label = dict(zip(theirs.targets, row, strict=True))
        for (label, probability), threshold in (
            ((label, dict(prediction.ranking)[label]), threshold)
            for label, threshold in zip(classifier.classes, classifier.thresholds, strict=True)
        ):
            scaled = op_norm(torch.tensor(probability), torch.tensor(threshold))
            assert float(theirs_by_label[label]) == pytest.approx(float(scaled), abs=2e-4), label
            assert (label in prediction.labels) == (float(theirs_by_label[label]) >= 0.5)
