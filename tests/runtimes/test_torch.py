"""The torch runtime, and choosing a runtime."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.modules import modules_imported_anew
from tests.helpers.tf32 import products_in_tf32

from skipnets.errors import UserError
from skipnets.models.backbone import Backbone
from skipnets.models.factory import create_model
from skipnets.models.registry import config_to_dict
from skipnets.runtimes import RUNTIMES, TensorsDoNotFitError, open_runtime
from skipnets.runtimes import torch as module
from skipnets.runtimes.torch import TorchRuntime, exact_products, fast_precision, pick_device


def tiny(**fields: object) -> TorchRuntime:
    return TorchRuntime(create_model("resnet20", block_config=(1, 1), num_classes=4, **fields))


def test_open_runtime_computes_what_the_model_does() -> None:
    original = tiny()
    opened = open_runtime(
        "torch", architecture=config_to_dict(original.model.config), tensors=original.tensors(), device="cpu"
    )
    batch = np.random.default_rng(0).normal(size=(2, 3, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(opened.logits(batch), original.logits(batch))
    np.testing.assert_array_equal(opened.embed(batch), original.embed(batch))
    assert (opened.name, opened.device) == ("torch", "cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_what_the_cpu_does() -> None:
    original = tiny()
    architecture = config_to_dict(original.model.config)
    opened = open_runtime("torch", architecture=architecture, tensors=original.tensors(), device="cuda")
    batch = np.random.default_rng(0).normal(size=(3, 3, 9, 11)).astype(np.float32)
    np.testing.assert_allclose(opened.logits(batch), original.logits(batch), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(opened.embed(batch), original.embed(batch), rtol=1e-2, atol=1e-2)
    assert opened.device == "cuda:0"


def settled(model: Backbone[Any]) -> Backbone[Any]:
    """Of one class for every image, whatever the rounding."""
    with torch.no_grad():
        model.get_classifier().weight.mul_(1e-2)
        model.get_classifier().bias.copy_(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    return model


def undecided(model: Backbone[Any]) -> Backbone[Any]:
    """Whose labels hang on the last digits: large logits, of which none is the largest on average."""
    with torch.no_grad():
        model.get_classifier().weight.mul_(300)
        model.get_classifier().bias.sub_(model.eval()(torch.randn(64, 3, 8, 8)).mean(0))
    return model


@pytest.mark.parametrize("labels_stay", [True, False])
def test_half_precision_is_tried_on_the_first_images(
    monkeypatch: pytest.MonkeyPatch, labels_stay: bool
) -> None:
    """As on a GPU, on the CPU: float32 until 64 images are compared, then what they decide."""
    monkeypatch.setattr(module, "fast_precision", lambda device: "bf16-mixed")
    model = settled(tiny().model) if labels_stay else undecided(tiny().model)
    exact, asked, automatic = (
        TorchRuntime(model, precision) for precision in ("32-true", "bf16-mixed", "auto")
    )
    batch = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(automatic.logits(batch), exact.logits(batch))
    np.testing.assert_array_equal(automatic.embed(batch), exact.embed(batch))
    after = asked if labels_stay else exact
    assert automatic.precision == after.precision
    np.testing.assert_array_equal(automatic.logits(batch), after.logits(batch))
    np.testing.assert_array_equal(automatic.embed(batch), after.embed(batch))
    assert (asked.logits(batch) != exact.logits(batch)).any()
    assert asked.logits(batch).dtype == np.float32


@pytest.mark.parametrize("allowed", [True, False])
def test_the_last_of_several_threads_allows_tf32_again(allowed: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    with products_in_tf32(allowed):
        first, second = contextlib.ExitStack(), contextlib.ExitStack()
        first.enter_context(exact_products())
        second.enter_context(exact_products())
        assert flags() == (False, False)
        first.close()
        assert flags() == (False, False)
        second.close()
        assert flags() == (allowed, allowed)


def test_on_a_cpu_the_default_is_float32() -> None:
    assert fast_precision(torch.device("cpu")) is None
    assert fast_precision(torch.device("cuda")) == "16-mixed"
    original = tiny()
    opened = open_runtime(
        "torch", architecture=config_to_dict(original.model.config), tensors=original.tensors(), device="cpu"
    )
    assert opened.precision is None


@pytest.mark.parametrize(
    ("kind", "precision", "words"),
    [
        ("native", "bf16-mixed", "precision=bf16-mixed: only the runtime torch computes in it"),
        ("torch", "16-mixed", "precision=16-mixed: needs a GPU"),
        ("auto", "half", "precision=half: must be one of"),
    ],
)
def test_precisions_that_cannot_be_had(kind: str, precision: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_runtime(kind, architecture={}, tensors={}, device="cpu", precision=precision)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_takes_half_precision_where_labels_stay() -> None:
    original = TorchRuntime(settled(tiny().model))
    architecture = config_to_dict(original.model.config)
    opened = open_runtime("torch", architecture=architecture, tensors=original.tensors(), device="cuda")
    batch = np.random.default_rng(0).normal(size=(64, 3, 9, 11)).astype(np.float32)
    np.testing.assert_allclose(opened.logits(batch), original.logits(batch), rtol=1e-3, atol=1e-4)
    assert opened.precision == "16-mixed"
    np.testing.assert_allclose(opened.logits(batch), original.logits(batch), rtol=1e-2, atol=1e-2)
    exact = open_runtime(
        "torch",
        architecture=architecture,
        tensors=original.tensors(),
        device="cuda",
        precision="32-true",
    )
    np.testing.assert_allclose(exact.logits(batch), original.logits(batch), rtol=1e-4, atol=1e-5)


def test_threads_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    runtime = tiny()
    architecture = config_to_dict(runtime.model.config)
    for threads in (None, 3):
        open_runtime("torch", architecture=architecture, tensors=runtime.tensors(), threads=threads)
    assert asked == [3]


@pytest.mark.parametrize(
    ("kind", "threads", "words"),
    [
        ("tensorflow", None, "runtime=tensorflow: must be one of auto, native"),
        ("onnx", None, "runtime=onnx: must be one of .*; did you mean onnxruntime"),
        ("onnxruntime", None, "runtime=onnxruntime: runs exports.*skipnets export MODEL --format onnx"),
        ("openvino", None, "runtime=openvino: runs exports.*skipnets export MODEL --format openvino"),
        ("torch", 0, "threads=0: must be at least 1"),
    ],
)
def test_runtimes_that_cannot_be_had(kind: str, threads: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_runtime(kind, architecture={}, tensors={}, threads=threads)
    assert sorted(RUNTIMES) == list(RUNTIMES)


def test_without_torch_the_error_says_what_to_install() -> None:
    with (
        modules_imported_anew("skipnets.runtimes.torch", missing="torch"),
        pytest.raises(UserError, match='this needs the extra "train": pip install'),
    ):
        open_runtime("torch", architecture={}, tensors={})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "device=gpu: must be auto, cpu"),
        ("cuda:99", "device=cuda:99: not available"),
        ("cpu:1", "device=cpu:1: not available"),
        ("meta", "device=meta: not available"),
    ],
)
def test_devices_that_are_not_there(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pick_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected


def test_tensors_of_another_model_are_refused() -> None:
    with_norms, without = tiny(), tiny(norm=None)
    tensors = {**without.tensors(), **with_norms.tensors()}
    with pytest.raises(TensorsDoNotFitError, match=r"left over: bn1\.weight, .* and \d+ more"):
        open_runtime("torch", architecture=config_to_dict(without.model.config), tensors=tensors)


def test_a_double_model_runs_on_float_batches() -> None:
    runtime = tiny()
    batch = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    single = runtime.logits(batch)
    runtime.model.double()
    assert runtime.logits(batch).dtype == np.float32
    np.testing.assert_allclose(runtime.logits(batch), single, rtol=1e-4, atol=1e-5)
