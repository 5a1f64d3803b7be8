"""Servers of a classifier of colors, and its export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.helpers.serving import make_colors, ready, served, wait_until

from skipnets.classifier import Classifier
from skipnets.serve import create_app


@pytest.fixture
def colors() -> Classifier:
    return make_colors()


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
        "format_version": 1,
        "architecture": colors.architecture,
        "classes": list(colors.classes),
        "preprocessing": colors.preprocessing.to_dict(),
        "provenance": colors.provenance,
        "export": {"input": "uint8"},
    }
    helper.set_model_props(model, {"skipnets": json.dumps(about)})
    onnx.save(model, path)
    return path
