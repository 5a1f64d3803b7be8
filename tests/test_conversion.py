"""Classifiers from weights that others trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import skipnets
from skipnets import Classifier, Preprocessing
from skipnets.conversion import classifier_from_weights
from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.weights import network_of
from skipnets.scaling import TargetScale

GIVEN = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says nothing of network, classes and images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(create_model("resnet8_w16", num_classes=3).state_dict() | {"extra": torch.ones(2)}, path)
    return path


def test_what_is_given_makes_a_classifier(weights: Path) -> None:
    classifier = classifier_from_weights(
        weights, model="resnet8_w16", classes=list("abc"), weights_ignore=["extra"], fit="crop", **GIVEN
    )
    assert classifier.classes == ("a", "b", "c")
    assert (classifier.preprocessing.size, classifier.preprocessing.fit) == ((32, 32), "crop")
    assert classifier.preprocessing.std == (0.25,) * 3
    assert classifier.provenance["weights"] == str(weights)
    tensors = torch.load(weights)
    assert torch.equal(classifier.model.state_dict()["fc.weight"], tensors["fc.weight"])
    assert not classifier.model.training


def test_what_the_weights_say_need_not_be_given(tmp_path: Path) -> None:
    """A folder as timm writes it, whose preprocessing is overridden in part."""
    folder = tmp_path / "timm"
    folder.mkdir()
    network = create_model("resnet8_w16", num_classes=2)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {"input_size": [3, 24, 24], "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.75}
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    plain = classifier_from_weights(folder, model="resnet8_w16", classes=["a", "b"]).preprocessing
    assert (plain.size, plain.fit, plain.crop_fraction, plain.mean) == ((24, 24), "crop", 0.75, (0.1,) * 3)
    larger = classifier_from_weights(folder, model="resnet8_w16", classes=["a", "b"], size=48)
    assert larger.preprocessing.to_dict() == {**plain.to_dict(), "size": [48, 48]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"^model: must be given, .*w\.pth does not say which network it is of$"),
        ({"model": "resnet8_w16", "classes": []}, "^classes: must have a name for each output"),
        ({"model": "resnet8_w16"}, "head for 10 classes"),
        ({"model": "resnet8_w16", "classes": list("abcd")}, "head for 4 classes; skipnets train --weights"),
        ({"model": "resnet8_w16", "classes": list("abc")}, "^size, mean, std: must be given, .* no preproc"),
        ({"model": "resnet8_w16", "classes": list("abc"), "size": 32}, "^size, mean, std: must be given"),
        ({"model": "resnet8_w16", "classes": list("abc"), **GIVEN, "fit": "zoom"}, "fit='zoom': must be"),
    ],
)
def test_what_is_missing_is_named(options: dict[str, object], words: str, weights: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        classifier_from_weights(weights, weights_ignore=["extra"], **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"w\.h5: "):
        classifier_from_weights(tmp_path / "w.h5")


def test_an_unknown_name_is_not_taken_for_a_network() -> None:
    with pytest.raises(
        UserError, match=r"^weights=xrv:densenet121: must be xrv:NAME with one of densenet121-"
    ):
        classifier_from_weights("xrv:densenet121")


def test_classes_are_as_many_as_the_weights_have(tmp_path: Path) -> None:
    """Where the source says so before the network is made."""
    path = tmp_path / "nih-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
    torch.save({"classifier.weight": torch.ones(18, 4), "classifier.bias": torch.ones(18)}, path)
    assert network_of(str(path)) == ("densenet121", {"num_classes": 14, "in_chans": 1})
    with pytest.raises(UserError, match=r"^classes: must be 14, the outputs of .*best\.pt, not 2$"):
        classifier_from_weights(path, classes=["a", "b"])


def test_labels_keep_their_thresholds_under_other_names(tmp_path: Path) -> None:
    """The network was trained to say each by a sigmoid."""
    network = create_model("resnet8_w16", num_classes=18, in_chans=1)
    torch.save(network.state_dict() | {"op_threshs": torch.linspace(0.1, 0.9, 18)}, tmp_path / "w.pt")
    names = [f"finding {index}" for index in range(18)]
    classifier = classifier_from_weights(tmp_path / "w.pt", model="resnet8_w16", classes=names)
    assert classifier.classes == tuple(names)
    assert classifier.task == "multi-label"
    assert classifier.thresholds == pytest.approx(torch.linspace(0.1, 0.9, 18).tolist())


def test_one_output_tells_two_classes_apart(tmp_path: Path) -> None:
    """As it is trained with binary cross-entropy: a high output is the second class."""
    torch.manual_seed(0)
    network = create_model("resnet8_w16", num_classes=1).eval()
    torch.save(network.state_dict() | {"loss.weight": torch.ones(2, 2)}, tmp_path / "w.pth")
    options = {"model": "resnet8_w16", "weights_ignore": ["loss.*"], **GIVEN}
    classifier = classifier_from_weights(tmp_path / "w.pth", classes=["cat", "dog"], **options)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with torch.no_grad():
        probability = float(network(torch.from_numpy(classifier.preprocess([image]))).sigmoid())
    classifier.save(tmp_path / "m.safetensors")
    [prediction] = skipnets.load(tmp_path / "m.safetensors").predict(image, top_k=2)
    assert dict(prediction.ranking) == pytest.approx({"dog": probability, "cat": 1 - probability}, abs=1e-5)
    with pytest.raises(UserError, match=r"^classes: must be two for the one output of .*w\.pth.* is 100%"):
        classifier_from_weights(tmp_path / "w.pth", classes=["dog"], **options)


PREPROCESSINGS = {
    "pad": Preprocessing((24, 40), fit="pad", interpolation="bicubic"),
    "stretch": Preprocessing(32, fit="stretch"),
    "center": Preprocessing(32, fit="center"),
    "crop": Preprocessing((24, 40), fit="crop", crop_fraction=0.83),
    "16 bits": Preprocessing(32, channels=1, window=(100, 4000), bits=16),
    "DICOM": Preprocessing(32, channels=1, window="voi", bits=12),
    "bands": Preprocessing(32, channels=5, mean=[0.5] * 5, std=[0.2] * 5, shown_channels=(4, 2, 0)),
}


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS.values(), ids=PREPROCESSINGS)
def test_a_model_file_keeps_its_preprocessing(preprocessing: Preprocessing, tmp_path: Path) -> None:
    path, channels = tmp_path / "own.safetensors", preprocessing.channels
    network = create_model("resnet8_w16", num_classes=2, in_chans=channels)
    Classifier.from_model(network, classes=["a", "b"], preprocessing=preprocessing).save(path)
    again = create_model("resnet8_w16", num_classes=2, in_chans=channels, weights=path)
    assert Classifier.from_model(again, classes=["c", "d"]).preprocessing == preprocessing
    if channels == 3:
        converted = classifier_from_weights(path, model="resnet8_w16", classes=["c", "d"])
        assert converted.preprocessing == preprocessing


def test_a_model_file_keeps_its_task(tmp_path: Path) -> None:
    """With thresholds that find the same labels, as they are before its calibration."""
    network = create_model("resnet8_w16", num_classes=2)
    made = {"classes": ["a", "b"], "preprocessing": Preprocessing(32)}
    labels = Classifier.from_model(network, task="multi-label", thresholds=[0.3, 0.7], **made)
    for temperature in (1.0, 2.0):
        labels.temperature = temperature
        labels.save(tmp_path / "labels.safetensors")
        found = classifier_from_weights(
            tmp_path / "labels.safetensors", model="resnet8_w16", classes=["c", "d"]
        )
        assert (found.classes, found.task, found.temperature) == (("c", "d"), "multi-label", 1)
        assert found.thresholds == labels.uncalibrated().thresholds
    scales = [TargetScale(mean=0.0, std=1.0)] * 2
    Classifier.from_model(network, task="regression", scales=scales, **made).save(tmp_path / "n.safetensors")
    with pytest.raises(UserError, match=r"n\.safetensors: must be of a classifier, not of a regression$"):
        classifier_from_weights(tmp_path / "n.safetensors", model="resnet8_w16", classes=["c", "d"])
