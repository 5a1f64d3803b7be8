"""Opening exports: which runtime, what is refused, and no torch where none is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from PIL import Image
from tests.helpers.classifiers import FORMATS, some_image
from tests.helpers.modules import modules_imported_anew

from skipnets.classifier import Classifier, describe, load
from skipnets.deploy.export import Export
from skipnets.errors import UserError
from skipnets.runtimes.exported import export_format

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_runtime_of_a_format(file_format: str, exports: dict[str, Export]) -> None:
    path = exports[file_format].path
    for asked in ("auto", RUNTIMES[file_format]):
        opened = load(path, runtime=asked, device="cpu", threads=1)
        assert (opened.runtime.name, opened.runtime.device) == (RUNTIMES[file_format], "cpu")
        assert opened.runtime.input_type == "uint8"
        assert opened.path == path
    assert load(exports["openvino"].path / "model.xml").path == exports["openvino"].path


@pytest.mark.parametrize("file_format", FORMATS)
def test_wrong_options(file_format: str, exports: dict[str, Export]) -> None:
    path = exports[file_format].path
    with pytest.raises(UserError, match="export the model file again: skipnets export MODEL"):
        load(path, runtime="native")
    with pytest.raises(UserError, match=r"device=cuda:7: (must be one|not available)"):
        load(path, device="cuda:7")
    with pytest.raises(UserError, match="threads=0: must be at least 1"):
        load(path, threads=0)


def test_names_of_formats(tmp_path: Path) -> None:
    names = {"a.onnx": "onnx", "a.ONNX": "onnx", "a.pt2": "pt2", "a.xml": "openvino", "a.safetensors": None}
    for name, expected in names.items():
        assert export_format(tmp_path / name) == expected
    assert export_format(tmp_path) is None


@pytest.mark.parametrize("name", ["no.onnx", "no.pt2", "no/model.xml"])
def test_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 100, -100])
@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged(file_format: str, keep: int, exports: dict[str, Export], tmp_path: Path) -> None:
    source, target = exports[file_format].path, tmp_path / exports[file_format].path.name
    if file_format == "openvino":
        target.mkdir()
        source, target = source / "model.xml", target / "model.xml"
    target.write_bytes(source.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        load(target)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


class TestGraphsFromElsewhere:
    def test_onnx(self, tmp_path: Path) -> None:
        path = tmp_path / "other.onnx"
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        graph = onnx.helper.make_graph([node], "g", [values[0]], [values[1]])
        onnx.save(
            onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]),
            path,
        )
        with pytest.raises(UserError, match=r"other\.onnx was not written by skipnets export"):
            load(path)

    def test_openvino(self, tmp_path: Path) -> None:
        from openvino import opset13

        parameter = opset13.parameter([1, 3], np.float32)
        openvino.save_model(openvino.Model([opset13.relu(parameter)], [parameter]), tmp_path / "model.xml")
        with pytest.raises(UserError, match="was not written by skipnets export"):
            load(tmp_path)

    def test_pt2(self, tmp_path: Path) -> None:
        program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
        torch.export.save(program, tmp_path / "other.pt2")
        with pytest.raises(UserError, match="was not written by skipnets export"):
            load(tmp_path / "other.pt2")


def test_metadata_from_a_newer_version(exports: dict[str, Export], tmp_path: Path) -> None:
    graph = onnx.load(exports["onnx"].path)
    onnx.helper.set_model_props(graph, {"skipnets": '{"format_version": 99}'})
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="has format version 99"):
        load(tmp_path / "m.onnx")
    onnx.helper.set_model_props(graph, {"skipnets": '{"format_version": 1, "export": {"input": "int4"}}'})
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"damaged metadata \(export\.input is 'int4'\)"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_graph_that_normalizes_takes_pixels_only(file_format: str, exports: dict[str, Export]) -> None:
    opened = load(exports[file_format].path)
    batch = opened.preprocess([some_image()])
    assert batch.dtype == np.uint8
    assert batch.shape == (1, 3, 16, 20)
    assert opened.preprocess([]).shape == (0, 3, 16, 20)
    assert opened.embed([]).shape == (0, 12)
    np.testing.assert_array_equal(opened.logits(torch.from_numpy(batch)), opened.logits(batch))
    np.testing.assert_array_equal(opened.logits(batch[:, :, ::-1]), opened.logits(batch[:, :, ::-1].copy()))
    with pytest.raises(
        UserError, match="batch: must be uint8 pixels, which this network normalizes, not float32"
    ):
        opened.logits(batch.astype(np.float32))


def test_an_export_is_no_module(exports: dict[str, Export], tmp_path: Path) -> None:
    opened = load(exports["pt2"].path)
    with pytest.raises(UserError, match="is an export without a torch module"):
        _ = opened.model
    with pytest.raises(UserError, match="is an export"):
        opened.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "file_format", "words"),
    [
        ("openvino", "openvino", 'this needs the extra "deploy": pip install'),
        ("torch", "pt2", 'this needs the extra "train": pip install'),
        ("onnxruntime", "onnx", 'pip install "onnxruntime"'),
    ],
)
def test_a_missing_library(
    library: str,
    file_format: str,
    words: str,
    exports: dict[str, Export],
) -> None:
    runtimes = (f"skipnets.runtimes.{module}" for module in ("onnxruntime", "openvino", "pt2", "torch"))
    with modules_imported_anew(*runtimes, missing=library), pytest.raises(UserError, match=words):
        load(exports[file_format].path)


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "pytorch_lightning"):
    sys.modules[name] = None  # importing it fails
from skipnets.cli import main
assert main(["predict", sys.argv[1], sys.argv[2], "--top-k", "3"]) == 0
from skipnets.classifier import describe, load
classifier = load(sys.argv[1])
print(classifier.embed([sys.argv[2]]).shape)
print(describe(sys.argv[1])["export"]["format"])
print([name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision") and sys.modules[name]])
"""


@pytest.mark.parametrize("file_format", ["onnx", "openvino"])
def test_predicting_never_imports_torch(
    file_format: str, exports: dict[str, Export], exported_classifier: Classifier, tmp_path: Path
) -> None:
    Image.fromarray(some_image()).save(tmp_path / "odd.jpg")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, exports[file_format].path, tmp_path / "odd.jpg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    predicted, *rest = result.stdout.splitlines()
    assert rest == ["(1, 12)", file_format, "[]"]
    expected = exported_classifier.predict([tmp_path / "odd.jpg"], 3)[0].ranking
    assert predicted.split("\t")[1::2] == [label for label, _ in expected]


def test_describe_needs_no_weights_of_the_model_file(exports: dict[str, Export]) -> None:
    about = describe(exports["openvino"].path)
    assert about["bytes"] == sum(file.stat().st_size for file in exports["openvino"].path.iterdir())
