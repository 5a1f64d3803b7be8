"""Exports in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from skipnets.classifier import load
from skipnets.deploy.export import Export
from skipnets.runtimes.onnxruntime import OnnxRuntime, _image_size, open_session


def test_onnx_is_opened_for_the_size_that_the_classifier_prepares(exports: dict[str, Export]) -> None:
    classifier = load(exports["onnx"].path)
    height, width = classifier.preprocessing.size
    assert isinstance(classifier.runtime, OnnxRuntime)
    for side in (height, height + 3):
        batch = np.random.default_rng(side).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
        any_size = open_session(exports["onnx"].path)
        assert any_size.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        expected = any_size.run(["logits"], {"images": batch})[0]
        np.testing.assert_allclose(classifier.runtime.logits(batch), expected, rtol=1e-4, atol=1e-4)
    opened = open_session(exports["onnx"].path, size=(height, width))
    assert opened.get_inputs()[0].shape == ["batch", 3, height, width]


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "no JSON",
        "[]",
        "{}",
        '{"preprocessing": {"size": 32}}',
        '{"preprocessing": {"size": [32, 32, 32, 32]}}',
        '{"preprocessing": {"size": ["32", "32"]}}',
        '{"preprocessing": {"size": [0, 32]}}',
        '{"preprocessing": {"size": [32, 1000000000000]}}',
    ],
)
def test_an_image_size_that_makes_no_sense_is_not_opened_for(metadata: str | None) -> None:
    assert _image_size(metadata) is None
