"""Graphs before they are exports: their interface, what they compute, and the metadata in their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.helpers.classifiers import make_classifier

from skipnets.deploy.graph import onnx_graph, openvino_graph, require_libraries, simplify, trace, write_graph
from skipnets.errors import UserError

METADATA = '{"a": "größer than {}"}'


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    classifier = make_classifier("resnet20")
    return trace(simplify(classifier.model, classifier.preprocessing, "uint8"), (16, 20), "uint8")


@pytest.fixture(scope="module")
def onnx_model(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    return onnx_graph(program)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 21, 18), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of the model as it was trained."""
    classifier = make_classifier("resnet20")
    mean, std = (
        torch.tensor(values).view(-1, 1, 1)
        for values in (classifier.preprocessing.mean, classifier.preprocessing.std)
    )
    model = classifier.model.eval()
    with torch.no_grad():
        maps = model.forward_features((torch.from_numpy(batch) / 255 - mean) / std)
        return model.forward_head(maps).numpy(), model.forward_head(maps, pre_logits=True).numpy()


def test_torch(program, batch, expected) -> None:
    with torch.no_grad():
        found = program.module()(torch.from_numpy(batch))
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_onnx(onnx_model, batch, expected) -> None:
    onnx.checker.check_model(onnx_model, full_check=True)
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("images", ["batch", 3, "height", "width"])
    ]
    for ours, wanted in zip(session.run(["logits", "features"], {"images": batch}), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def test_openvino(onnx_model, batch, expected) -> None:
    from skipnets.runtimes.openvino import shared_core

    compiled = shared_core().compile_model(
        openvino_graph(onnx_model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(batch)
    for name, wanted in zip(("logits", "features"), expected, strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-4)


def test_metadata_travel_in_the_file(program, onnx_model, tmp_path: Path) -> None:
    from skipnets.runtimes.openvino import shared_core

    write_graph(onnx_model, "onnx", tmp_path / "m.onnx", METADATA)
    properties = {each.key: each.value for each in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["skipnets"] == METADATA
    write_graph(openvino_graph(onnx_model), "openvino", tmp_path / "m", METADATA)
    graph = shared_core().read_model(tmp_path / "m/model.xml")
    assert graph.get_rt_info(["skipnets", "metadata"]).astype(str) == METADATA
    write_graph(program, "pt2", tmp_path / "m.pt2", METADATA)
    texts = {"skipnets.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=texts)
    assert texts["skipnets.json"] == METADATA


@pytest.mark.parametrize(
    ("file_format", "int8", "needed"),
    [("onnx", False, "onnxscript"), ("openvino", False, "openvino"), ("onnx", True, "nncf")],
)
def test_what_is_missing_is_said_first(
    file_format: str, int8: bool, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == needed else find(name))
    require_libraries("pt2", int8=False)
    with pytest.raises(UserError, match=r"\[deploy\]"):
        require_libraries(file_format, int8=int8)
