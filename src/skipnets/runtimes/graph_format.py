"""Names, files and metadata keys of exported graphs, shared by all libraries that write or read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = [
    "AXIS_NAMES",
    "EXPORT_FORMATS",
    "FEATURES",
    "IMAGES",
    "INPUT_NAMES",
    "LOGITS",
    "ONNX_METADATA",
    "OPENVINO_GRAPH",
    "OPENVINO_METADATA",
    "PT2_METADATA",
    "ExportFormat",
]

ExportFormat = Literal["onnx", "openvino", "pt2"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("onnx", "openvino", "pt2")

# The names of a graph's input and outputs.
IMAGES, LOGITS, FEATURES = "images", "logits", "features"
INPUT_NAMES = (IMAGES, "pictures")  # the second is version 0.1's

# Names of the input's axes behind batch and channels, by their number: of signals, images and volumes.
AXIS_NAMES: Mapping[int, tuple[str, ...]] = {
    1: ("length",),
    2: ("height", "width"),
    3: ("depth", "height", "width"),
}

# An OpenVINO graph is a folder.
OPENVINO_GRAPH = "model.xml"

# Where each format keeps the classifier's metadata, one JSON text.
ONNX_METADATA = "skipnets"
OPENVINO_METADATA = ["skipnets", "metadata"]
PT2_METADATA = "skipnets.json"
