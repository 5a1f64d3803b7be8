"""Names, files and metadata keys of exported graphs, shared by all libraries that write or read them."""

from __future__ import annotations

from typing import Literal

__all__ = [
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

# An OpenVINO graph is a folder.
OPENVINO_GRAPH = "model.xml"

# Where each format keeps the classifier's metadata, one JSON text.
ONNX_METADATA = "skipnets"
OPENVINO_METADATA = ["skipnets", "metadata"]
PT2_METADATA = "skipnets.json"
