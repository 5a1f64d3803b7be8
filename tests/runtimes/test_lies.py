"""What a file says of itself is validated alike in every format, with one line that names the file."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import safetensors
import safetensors.numpy
from tests.helpers.classifiers import some_image

from skipnets.classifier import Classifier, describe, load
from skipnets.deploy.export import Export
from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.runtimes.graph_format import OPENVINO_METADATA

FORMATS = ("safetensors", "onnx", "openvino", "pt2")
Rewrite = Callable[[str, str], Path]


@pytest.fixture
def rewritten(exported_classifier: Classifier, exports: dict[str, Export], tmp_path: Path) -> Rewrite:
    """Writes a file of each format with the given metadata; "M" stands for those that it has."""

    def rewrite(file_format: str, text: str) -> Path:
        if file_format == "safetensors":
            assert exported_classifier.path is not None
            tensors = safetensors.numpy.load_file(exported_classifier.path)
            path = tmp_path / "m.safetensors"
            safetensors.numpy.save_file(tensors, path, metadata={"skipnets": text})
            return path
        source = exports[file_format].path
        path = tmp_path / source.name
        if file_format == "onnx":
            graph = onnx.load(source)
            onnx.helper.set_model_props(graph, {"skipnets": text})
            onnx.save(graph, path)
        elif file_format == "openvino":
            model = openvino.Core().read_model(source / "model.xml")
            model.set_rt_info(text, OPENVINO_METADATA)
            path.mkdir(exist_ok=True)
            openvino.save_model(model, path / "model.xml", compress_to_fp16=False)
        else:
            shutil.copy(source, path)
            with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
                for name in old.namelist():
                    new.writestr(name, text if name.endswith("skipnets.json") else old.read(name))
        return path

    return rewrite


def of(exports: dict[str, Export]) -> dict[str, Any]:
    """The metadata of an export."""
    with zipfile.ZipFile(exports["pt2"].path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("skipnets.json")]
        return json.loads(archive.read(name))


HUGE = 10**9
LIES: dict[str, tuple[tuple[str, ...], object, str]] = {
    "a mean that is no number": (("preprocessing", "mean"), [float("nan"), 0, 0], "NaN is not JSON|not JSON"),
    "a standard deviation of nearly nothing": (("preprocessing", "std"), [1e-30, 1, 1], "std at least 1e-05"),
    "an absurd mean": (("preprocessing", "mean"), [1e30, 1, 1], "both at most"),
    "a mean of text": (("preprocessing", "mean"), ["0", "0", "0"], "mean=.*must be 3 numbers"),
    "a size of text": (("preprocessing", "size"), "16", "size='16': must be"),
    "an absurd size": (("preprocessing", "size"), [HUGE, HUGE], "size=.*at most"),
    "a crop of text": (("preprocessing", "crop_fraction"), "1", "crop_fraction=1: must be"),
    "a fit that is a list": (("preprocessing", "fit"), ["pad"], "fit=.*must be one of"),
    "an interpolation that is a list": (("preprocessing", "interpolation"), [], "interpolation=.*must be"),
    "true channels": (("preprocessing", "channels"), True, "channels=True: must be"),
    "billions of channels": (("preprocessing", "channels"), HUGE, "channels=1000000000: must be"),
    "bits of text": (("preprocessing", "bits"), "8", "bits=8: must be"),
    "a window of nothing": (("preprocessing", "window"), [0, 1e-300], "window=.*must be two numbers"),
    "shown channels of text": (("preprocessing", "shown_channels"), "abc", "shown_channels=.*must be"),
    "an unknown field": (("preprocessing", "crop"), 1, "preprocessing has no field 'crop'"),
    "classes of numbers": (("classes",), [1, 2, 3], "classes: must be a list"),
    "too many classes": (("classes",), ["a", "b", "c", "d"], "classes: must be 3"),
    "billions of layers": (("architecture", "block_config"), [HUGE, 1], "which no network has"),
    "thousands of layers": (("architecture", "block_config"), [9000, 9000], "which no network has"),
    "layers of text": (("architecture", "block_config"), ["2", "1"], "block_config"),
    "an absurd width": (
        ("architecture", "growth_rate"),
        HUGE,
        "growth_rate is 1000000000, which no",
    ),
    "a temperature of text": (("temperature",), "warm", "temperature='warm': must be"),
    "data of another type": (("provenance", "data"), 3, "provenance.data is 3, which is of the wrong type"),
    "scores of another type": (("provenance", "scores"), [1], "provenance.scores is "),
    "a version of another type": (("skipnets_version",), [1], "skipnets_version is of the wrong type"),
}


# All lies in every format, of which the ordinary tests tell each at least once.
CASES = [
    pytest.param(
        file_format, lie, marks=() if number % len(FORMATS) == turn or number < 2 else pytest.mark.slow
    )
    for turn, file_format in enumerate(FORMATS)
    for number, lie in enumerate(LIES)
]


@pytest.mark.parametrize(("file_format", "lie"), CASES)
def test_lies_are_refused_in_every_format(
    lie: str, file_format: str, rewritten: Rewrite, exports: dict[str, Export]
) -> None:
    (*folder, key), value, message = LIES[lie]
    metadata = of(exports)
    place = metadata
    for name in folder:
        place = place[name]
    place[key] = value
    path = rewritten(file_format, json.dumps(metadata))
    for read in (load, describe):
        with pytest.raises(UserError, match=rf"damaged metadata \(.*({message})") as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


EXPORT_LIES: dict[str, tuple[str, object]] = {
    "no input": ("input", None),
    "an input that is a list": ("input", ["uint8"]),
    "another format": ("format", "pickle"),
    "parameters of text": ("parameters", "many"),
    "int8 as a number": ("int8", 2),
    "a check that is none": ("check", 1),
    "a check of text": ("check", {"largest_difference": "small"}),
    "an accuracy of text": ("accuracy", {"before": "high"}),
}


@pytest.mark.parametrize("lie", EXPORT_LIES)
def test_lies_about_the_export_are_refused(lie: str, rewritten: Rewrite, exports: dict[str, Export]) -> None:
    key, value = EXPORT_LIES[lie]
    metadata = of(exports)
    metadata["export"][key] = value
    path = rewritten("pt2", json.dumps(metadata))
    for read in (load, describe):
        with pytest.raises(UserError, match=r"damaged metadata \(export\."):
            read(path)


@pytest.mark.parametrize("file_format", FORMATS[1:])
def test_a_graph_of_other_classes_is_refused(
    file_format: str, rewritten: Rewrite, exports: dict[str, Export]
) -> None:
    metadata = of(exports)
    metadata["classes"] = ["ant", "bee"]
    metadata["architecture"]["num_classes"] = 2
    with pytest.raises(UserError, match=r"its graph computes \(1, 3\) and .* for one image and 2 classes"):
        load(rewritten(file_format, json.dumps(metadata)))


def test_a_graph_that_computes_no_numbers_is_refused(exports: dict[str, Export], tmp_path: Path) -> None:
    graph = onnx.load(exports["onnx"].path)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[...] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="its graph's outputs are not finite"):
        load(tmp_path / "m.onnx")


def test_what_is_no_number_is_an_error_and_no_prediction(exported_classifier: Classifier) -> None:
    class Broken:
        name, input_type, device = "torch", "float32", "cpu"

        def logits(self, batch: np.ndarray) -> np.ndarray:
            answers = np.zeros((len(batch), 3), np.float32)
            answers[0] = np.nan
            return answers

    broken = Classifier(
        architecture=exported_classifier.architecture,
        classes=exported_classifier.classes,
        preprocessing=exported_classifier.preprocessing,
        provenance={},
        runtime=Broken(),  # type: ignore[arg-type]
    )
    first, second = broken.predict([some_image(), some_image()])
    assert first.label is None
    assert first.error is not None
    assert "outputs are not finite" in first.error
    assert second.label == "ant"
    with pytest.raises(UserError, match="outputs are not finite"):
        broken.probabilities(broken.preprocess([some_image()]))


HEADERS: dict[str, dict[str, Any]] = {
    "overlapping tensors": {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    },
    "a hole": {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    },
    "an empty tensor of any shape": {
        "a": {"dtype": "F32", "shape": [HUGE * HUGE, 0], "data_offsets": [0, 0]}
    },
    "a shape that overflows": {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 12]}},
    "a negative shape": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "offsets backwards": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    "a type that numpy has not": {"a": {"dtype": "F8_E4M3", "shape": [12], "data_offsets": [0, 12]}},
    "half a type": {"a": {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]}},
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_lie_about_tensors_are_refused(
    header: str, exports: dict[str, Export], tmp_path: Path
) -> None:
    content = {**HEADERS[header], "__metadata__": {"skipnets": json.dumps(of(exports))}}
    text = json.dumps(content).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(UserError, match=r"m\.safetensors"):
        load(path, runtime="torch")
    with pytest.raises(UserError, match=r"m\.safetensors"):
        create_model("resnet20", weights=path)


def test_an_enormous_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="truncated or damaged"):
        describe(path)
