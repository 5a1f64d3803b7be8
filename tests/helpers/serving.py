"""A classifier of colors whose network is three means, servers of it on the loopback, and their clients."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.models.registry import config_to_dict, model_config
from skipnets.scaling import TargetScale
from skipnets.serve import run_server

CLASSES = ("red", "green", "blue")
COLORS = {"red": (220, 30, 20), "green": (10, 200, 40), "blue": (20, 40, 210)}

SCALES = (TargetScale(mean=100.0, std=10.0), *[TargetScale(mean=0.0, std=1.0)] * 2)

Serving = Callable[..., httpx.Client]


class Means:
    """A runtime that says how red, green and blue an image is.

    Attributes:
        batches: How many images each call had.
        held: While this is clear, the network is busy.
        failure: Raised instead of an answer.
    """

    name = "onnxruntime"
    input_type: Literal["uint8", "float32"] = "uint8"
    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()
        self.failure: Exception | None = None
        self.seconds = 0.0

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        assert self.held.wait(20)
        time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(batch))
        return batch.mean(axis=(2, 3), dtype=np.float32) / 16

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError


def make_colors() -> Classifier:
    """A classifier that runs `Means`."""
    return Classifier(
        architecture=config_to_dict(model_config("resnet20", num_classes=3)),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        provenance={"data": "colors"},
        runtime=Means(),
    )


def make_label_colors() -> Classifier:
    """A multi-label classifier: a color is there if it is brighter than nothing."""
    colors = make_colors()
    return Classifier(
        architecture=colors.architecture,
        classes=CLASSES,
        preprocessing=colors.preprocessing,
        provenance=colors.provenance,
        runtime=Means(),
        task="multi-label",
        thresholds=(0.7, 0.7, 0.7),
    )


def make_number_colors() -> Classifier:
    """A regression whose numbers are the colors: of red with a scale of its own."""
    colors = make_colors()
    return Classifier(
        architecture=colors.architecture,
        classes=CLASSES,
        preprocessing=colors.preprocessing,
        provenance=colors.provenance,
        runtime=Means(),
        task="regression",
        scales=SCALES,
    )


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
    """Tells whether the model is loaded."""
    return lambda: app.state.service.state == "ready"


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Fail if it does not come true in time."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def _status(client: httpx.Client) -> int | None:
    try:
        return client.get("/healthz").status_code
    except httpx.TransportError:
        return None


def upload(*contents: bytes, field: str = "files") -> list[tuple[str, tuple[str, bytes]]]:
    """The fields of a form with these files."""
    return [(field, (f"{index}.png", content)) for index, content in enumerate(contents)]


def detail(response: httpx.Response, status: int) -> str:
    """The one line of a refusal."""
    assert response.status_code == status, response.text
    text = response.json()["detail"]
    assert "\n" not in text
    return text


@contextlib.contextmanager
def started(code: str, *words: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process, which is killed if the test leaves it running."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
        | variables,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The line that says that it serves, and the address in it."""
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return line, found[0]


def write_colors_onnx(path: Path) -> Path:
    """Write the same network as an export."""
    import onnx
    from onnx import TensorProto, helper

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
