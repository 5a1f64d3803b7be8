"""A classifier of colors whose network is three means, and servers of it on the loopback."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.models.registry import config_to_dict, model_config
from skipnets.serve import create_app, run_server

CLASSES = ("red", "green", "blue")
COLORS = {"red": (220, 30, 20), "green": (10, 200, 40), "blue": (20, 40, 210)}


class Means:
    """A runtime that says how red, green and blue an image is.

    Attributes:
        batches: How many images each call had.
        held: While this is clear, the network is busy.
        failure: Raised instead of an answer.
    """

    name = "onnxruntime"
    input_type = "uint8"
    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()
        self.failure: Exception | None = None
        self.seconds = 0.0

    def logits(self, batch: np.ndarray) -> np.ndarray:
        assert self.held.wait(20)
        time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(batch))
        return batch.mean(axis=(2, 3), dtype=np.float32) / 16

    def embed(self, batch: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def make_colors() -> Classifier:
    return Classifier(
        architecture=config_to_dict(model_config("resnet20", num_classes=3)),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        provenance={"data": "colors"},
        runtime=Means(),
    )


@pytest.fixture
def colors() -> Classifier:
    return make_colors()


def make_image(color: str | tuple[int, int, int], size: tuple[int, int] = (20, 18)) -> bytes:
    """A PNG of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[color] if isinstance(color, str) else color).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served(app: FastAPI, **client: Any) -> Iterator[httpx.Client]:
    """A client of the application, which really is served."""
    port = free_port()
    thread = threading.Thread(target=run_server, args=[app], kwargs={"port": port}, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, **client) as asking:
            wait_until(lambda: _status(asking) is not None)
            yield asking
    finally:
        app.state.service.drain()
        thread.join(20)
    assert not thread.is_alive()


def ready(app: FastAPI) -> Callable[[], bool]:
    return lambda: app.state.service.state == "ready"


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def _status(client: httpx.Client) -> int | None:
    try:
        return client.get("/healthz").status_code
    except httpx.TransportError:
        return None


@pytest.fixture
def serving(colors: Classifier) -> Iterator[Callable[..., httpx.Client]]:
    """Start a server of the colors with these options of `create_app`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> httpx.Client:
            app = create_app(colors, **options)
            client = stack.enter_context(served(app))
            wait_until(ready(app))
            return client

        yield start
        colors.runtime.held.set()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def colors_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as an export."""
    import onnx
    from onnx import TensorProto, helper

    path = tmp_path_factory.mktemp("colors") / "model.onnx"
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
            helper.make_node("Div", ["means", "sixteen"], ["logits"]),
            helper.make_node("Identity", ["means"], ["features"]),
        ],
        "colors",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("logits", "features")],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("sixteen", TensorProto.FLOAT, [], [16.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    colors = make_colors()
    about = {
        "format_version": 2,
        "architecture": colors.architecture,
        "classes": list(colors.classes),
        "preprocessing": colors.preprocessing.to_dict(),
        "provenance": colors.provenance,
        "export": {"input": "uint8"},
    }
    helper.set_model_props(model, {"skipnets": json.dumps(about)})
    onnx.save(model, path)
    return path
