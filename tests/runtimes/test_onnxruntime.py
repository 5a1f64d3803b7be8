"""Exports in ONNX Runtime."""

from __future__ import annotations

import gc
import os
import weakref

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


def test_a_forked_process_leaves_its_parents_sessions_open(
    exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing one waits forever for a lock that a thread of the parent held when it forked."""
    classifier = load(exports["onnx"].path)
    runtime = classifier.runtime
    assert isinstance(runtime, OnnxRuntime)
    of_parent = weakref.ref(runtime._size_session)
    batch = classifier.preprocess([np.zeros((16, 16, 3), dtype=np.uint8)])
    expected = runtime.logits(batch)
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    np.testing.assert_array_equal(runtime.logits(batch), expected)
    assert runtime._size_session is not of_parent()
    gc.collect()
    assert of_parent() is not None
