"""What a file says about its classifier: refused where it does not fit together, and plain for JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipnets.data import Preprocessing
from skipnets.description import Description, plain
from skipnets.errors import UserError
from skipnets.models.registry import config_to_dict, model_config
from skipnets.scaling import TargetScale

SCALES = (TargetScale(mean=40.0, std=12.5), TargetScale(mean=2.0, std=1.0, grades=(0, 4)))


def describe(**changes: Any) -> Description:
    values: dict[str, Any] = {
        "architecture": config_to_dict(model_config("resnet18", num_classes=2)),
        "classes": ["cat", "dog"],
        "preprocessing": Preprocessing(size=64),
        "temperature": 1,
        "provenance": {"data": Path("pets")},
    }
    return Description(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "ab"}, "classes: must be a list of at least one name"),
        ({"classes": []}, "classes: must be a list of at least one name"),
        ({"classes": ["cat", ""]}, "classes: must be a list of at least one name"),
        ({"classes": ["cat", "cat"]}, "classes: must be unique; repeated: cat"),
        ({"classes": ["a", "b", "c"]}, "classes: must be 2, the network.s outputs, not 3"),
        (
            {"preprocessing": Preprocessing(size=64, channels=1)},
            "preprocessing: must give in_chans=3 channels for",
        ),
        ({"temperature": 0}, "temperature=0: must be a positive number"),
        ({"temperature": True}, "temperature=True: must be a positive number"),
        ({"temperature": float("nan")}, "temperature=nan: must be a positive number"),
        ({"task": "several"}, "task='several': must be one of single-label, multi-label"),
        ({"thresholds": (0.5, 0.5)}, "thresholds: must not be given with task=single-label"),
        ({"task": "multi-label", "thresholds": (0.5,)}, "thresholds: must be 2, one for each label, not 1"),
        (
            {"task": "multi-label", "thresholds": (0.5, 1.5)},
            "thresholds: dog=1.5: must be a number from 0 to 1",
        ),
        ({"task": "multi-label", "thresholds": (0.5, float("nan"))}, "dog=nan: must be a number"),
        ({"task": "multi-label", "thresholds": 0.5}, "thresholds: must be a list of numbers"),
        ({"task": "multi-label", "classes": ["cat", "a|b"]}, "label 'a.b': must not hold"),
        ({"task": "regression"}, "scales: must be 2, one for each target, with task=regression"),
        ({"scales": SCALES}, "scales: must not be given with task=single-label"),
        ({"task": "regression", "scales": SCALES[:1]}, "scales: must be 2, one for each target"),
        (
            {"task": "regression", "scales": SCALES, "temperature": 2},
            "temperature=2: must be 1 with",
        ),
        (
            {"task": "regression", "scales": SCALES, "thresholds": (0.5, 0.5)},
            "thresholds: must not be given with task=regression",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(**changes)


def test_a_file_gives_back_what_was_written() -> None:
    written = json.loads(json.dumps(describe(temperature=1.5).to_dict()))
    read = Description.from_metadata(Path("m.safetensors"), written)
    assert read.to_dict() == written
    assert (read.temperature, read.preprocessing) == (1.5, Preprocessing(size=64))


@pytest.mark.parametrize("key", ["architecture", "classes", "preprocessing", "provenance"])
@pytest.mark.parametrize("value", [None, 3, "text"])
def test_damaged_metadata_name_the_file_and_the_key(key: str, value: object) -> None:
    metadata = {**describe().to_dict(), key: value}
    message = rf"^m\.safetensors: damaged metadata \({key} is missing or of the wrong type\)$"
    with pytest.raises(UserError, match=message):
        Description.from_metadata(Path("m.safetensors"), metadata)


def test_a_file_gives_back_task_and_thresholds() -> None:
    written = json.loads(json.dumps(describe(task="multi-label", thresholds=(0.25, 1)).to_dict()))
    assert (written["task"], written["thresholds"]) == ("multi-label", [0.25, 1.0])
    read = Description.from_metadata(Path("m.safetensors"), written)
    assert (read.task, read.thresholds) == ("multi-label", (0.25, 1.0))
    assert describe(task="multi-label").thresholds == (0.5, 0.5)
    with pytest.raises(UserError, match=r"^m\.safetensors: damaged metadata \(thresholds: "):
        Description.from_metadata(Path("m.safetensors"), written | {"thresholds": ["x", 0]})


def test_a_file_gives_back_the_scales_of_targets() -> None:
    written = json.loads(json.dumps(describe(task="regression", scales=SCALES).to_dict()))
    assert written["scales"] == [{"mean": 40.0, "std": 12.5}, {"mean": 2.0, "std": 1.0, "grades": [0, 4]}]
    read = Description.from_metadata(Path("m.safetensors"), written)
    assert (read.task, read.scales) == ("regression", SCALES)
    for scales in ([{"mean": 1.0}] * 2, [{"mean": 1.0, "std": 0}] * 2, [3, 4], "ab", 7):
        with pytest.raises(UserError, match=r"^m\.safetensors: damaged metadata \("):
            Description.from_metadata(Path("m.safetensors"), written | {"scales": scales})


def test_what_cannot_be_read_again_is_not_written() -> None:
    with pytest.raises(UserError, match=r"provenance\.epochs is '3', which is of the wrong type"):
        describe(provenance={"epochs": "3"}).to_dict()
    describe(provenance={"epochs": None, "note": {"anything": [1]}}).to_dict()


def test_plain_values() -> None:
    value = {1: np.array([1.5, np.inf]), "path": Path("a"), "pair": (np.int64(3), np.bool_(True), None)}
    assert plain(value) == {"1": [1.5, None], "path": "a", "pair": [3, True, None]}
    json.dumps(plain(value), allow_nan=False)
    with pytest.raises(UserError, match="must hold plain values, not set"):
        plain({"a": {1}})
