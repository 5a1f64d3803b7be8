"""Graphs before they are exports: their interface, what they compute, and the metadata in their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.helpers.classifiers import make_classifier
from tests.helpers.networks import SMALL_RDNET

import skipnets
from skipnets.deploy import export_model
from skipnets.deploy.graph import onnx_graph, openvino_graph, require_libraries, simplify, trace, write_graph
from skipnets.errors import UserError
from skipnets.models.registry import BlockActivation, NormKind

LATER: list[tuple[str, dict[str, Any]]] = [
    ("rdnet_tiny", SMALL_RDNET),
    ("seresnet18", {"width": 8, "block_config": (1, 1)}),
    ("ecaresnet50d", {"width": 16, "block_config": (1, 1)}),
    ("resnetblur50d", {"width": 16, "block_config": (1, 1)}),
    ("resnetaa34d", {"width": 8, "block_config": (1, 1)}),
    ("resnetrs50", {"width": 16, "block_config": (1, 1)}),
    ("resnetv2_50x1_bit", {"width": 64, "block_config": (1, 1)}),
    ("resnet20", {"block_config": (1, 1), "norm": "filter-response"}),
    ("densenet_bc40_k12", {"block_config": (1, 1), "norm": "evonorm-s0"}),
]
QUICK = {
    ("rdnet_tiny", "pt2"),
    ("seresnet18", "pt2"),
    ("resnetblur50d", "pt2"),
    ("resnetaa34d", "onnx"),
    ("resnet20", "pt2"),
}
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


@pytest.mark.parametrize(
    ("name", "fields", "file_format"),
    [
        pytest.param(
            name, fields, file_format, marks=() if (name, file_format) in QUICK else pytest.mark.slow
        )
        for name, fields in LATER
        for file_format in ("onnx", "openvino", "pt2")
    ],
)
def test_later_networks_are_exported(
    tmp_path: Path, name: str, fields: dict[str, Any], file_format: Any
) -> None:
    """Layer norms, gates, blurs and averages over the edge, at sizes that the export was not traced with."""
    torch.manual_seed(0)
    model = skipnets.create_model(name, num_classes=3, **fields)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("gamma"):
            torch.nn.init.normal_(parameter)
    model(torch.randn(4, 3, 32, 32))
    classifier = skipnets.Classifier.from_model(
        model.eval(), classes=["a", "b", "c"], preprocessing=skipnets.Preprocessing(size=(27, 35))
    )
    classifier.save(tmp_path / "model.safetensors")
    exported = skipnets.load(export_model(tmp_path / "model.safetensors", file_format=file_format).path)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 37, 45, 3), dtype=np.uint8))
    for found, wanted in zip(exported.predict(images), classifier.predict(images), strict=True):
        assert found.probability == pytest.approx(wanted.probability, abs=1e-5)
    if file_format == "onnx":
        smallest = model.config.smallest_size
        batch = np.random.default_rng(1).integers(0, 256, (1, 3, smallest, smallest + 1), dtype=np.uint8)
        mean, std = (
            np.array(numbers)[:, None, None]
            for numbers in (classifier.preprocessing.mean, classifier.preprocessing.std)
        )
        expected = classifier.logits(((batch / 255 - mean) / std).astype(np.float32))
        session = onnxruntime.InferenceSession(str(exported.path))
        (logits, _) = session.run(None, {session.get_inputs()[0].name: batch})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


RDNET_NORMS = (*get_args(NormKind), None)
RDNET_ACTIVATIONS = get_args(BlockActivation)


@pytest.mark.parametrize(
    ("norm", "activation", "file_format"),
    [
        pytest.param(
            norm,
            RDNET_ACTIVATIONS[number % len(RDNET_ACTIVATIONS)],
            file_format,
            marks=() if (norm, file_format) == ("evonorm-s0", "onnx") else pytest.mark.slow,
        )
        for number, norm in enumerate(RDNET_NORMS)
        for file_format in ("onnx", "openvino", "pt2")
    ],
)
def test_rdnets_of_every_norm_and_activation_are_exported(
    tmp_path: Path, norm: Any, activation: str, file_format: Any
) -> None:
    classifier = random_rdnet(norm, activation)
    suffix = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}[file_format]
    exported = skipnets.load(export_model(classifier, tmp_path / f"a{suffix}", file_format=file_format).path)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 37, 45, 3), dtype=np.uint8))
    expected = classifier.logits(classifier.preprocess(images))
    assert expected.std(0).min() > 1e-3  # they depend on the images
    logits = exported.logits(exported.preprocess(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def random_rdnet(norm: Any, activation: str) -> skipnets.Classifier:
    """A small RDNet, to whose outputs all of its norms and activations contribute."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "block_config": (1, 1),
        "growth_rates": (8, 8),
        "halves": (False, True),
        "squeeze_excitation": (False, True),
        "stem_channels": 8,
        "layer_scale": 1.0,
    }
    model = skipnets.create_model("rdnet_tiny", num_classes=3, norm=norm, activation=activation, **shape)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 or not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.normal_(parameter, mean=1.0 if name == "weight" else 0.0, std=0.3)
    model(torch.randn(4, 3, 32, 32))
    return skipnets.Classifier.from_model(
        model.eval(), classes=["a", "b", "c"], preprocessing=skipnets.Preprocessing(size=(27, 35))
    )
