"""Classifiers from weights that others trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skipnets.conversion import classifier_from_weights
from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.weights import network_of

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
