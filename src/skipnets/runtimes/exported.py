"""Exported networks: graphs in another library's format that carry a classifier's metadata.

The metadata are one JSON text, as in a model file with one more key, "export": the graph's input type and how
it was checked. Only the format is validated here. Needs no torch unless a .pt2 is opened.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from skipnets.errors import UserError, needs_extra
from skipnets.runtimes.graph_format import EXPORT_FORMATS, OPENVINO_GRAPH, ExportFormat
from skipnets.runtimes.model_file import parse_metadata
from skipnets.runtimes.runtime import InputType, Runtime

__all__ = ["Exported", "export_format", "open_exported"]

_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported network, ready to run.

    Args:
        path: The file, or the folder of an OpenVINO graph.
        metadata: The classifier's metadata from the file.
        runtime: The runtime that runs it.
    """

    path: Path
    metadata: dict[str, Any]
    runtime: Runtime


def export_format(path: str | os.PathLike[str]) -> ExportFormat | None:
    """The export format of a path, by its name; None if it is not an export."""
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.suffix.lower() == ".pt2":
        return "pt2"
    is_graph = path.suffix.lower() == ".xml" or (path / OPENVINO_GRAPH).is_file()
    return "openvino" if is_graph else None


def open_exported(
    path: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Exported:
    """Open an export with the runtime of its format.

    Args:
        path: A .onnx or .pt2 file, or the folder of an OpenVINO graph.
        runtime: "auto", or the name of the runtime of this format.
        device: "auto", "cpu", ...
        threads: CPU threads that compute; None leaves it to the runtime.

    Raises:
        UserError: If it is missing, damaged or not made by `skipnets export`, or cannot run here.
    """
    path = Path(path)
    kind = export_format(path)
    assert kind is not None
    if runtime not in ("auto", _RUNTIMES[kind]):
        instead = (
            "name the model file or run folder that it was made from"
            if runtime == "torch"
            else "for another runtime, export the model file again: "
            f"skipnets export MODEL --format {'|'.join(EXPORT_FORMATS)}"
        )
        raise UserError(f"runtime={runtime}: {path} runs only in {_RUNTIMES[kind]}; {instead}")
    if kind == "openvino" and path.suffix.lower() == ".xml":
        path = path.parent
    if not path.exists():
        raise UserError(f"{path} does not exist: name a model file, an export or a run folder")
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    opened, text = _open(kind, path, device, threads)
    if text is None:
        raise UserError(
            f"{path} was not written by skipnets export: it carries no classes and no preprocessing"
        )
    metadata = parse_metadata(path, text)
    input_type = metadata.get("export", {}).get("input") if isinstance(metadata.get("export"), dict) else None
    if input_type not in get_args(InputType):
        raise UserError(f"{path}: damaged metadata (export.input is {input_type!r})")
    opened.input_type = cast(InputType, input_type)
    return Exported(path=path, metadata=metadata, runtime=opened)


def _open(kind: ExportFormat, path: Path, device: str, threads: int | None) -> tuple[Any, str | None]:
    """Open a runtime, and read the metadata in the file."""
    with needs_extra():
        if kind == "onnx":
            from skipnets.runtimes.onnxruntime import OnnxRuntime

            return OnnxRuntime.open(path, device=device, threads=threads)
        if kind == "openvino":
            from skipnets.runtimes.openvino import OpenVINORuntime

            return OpenVINORuntime.open(path, device=device, threads=threads)
        from skipnets.runtimes.pt2 import Pt2Runtime

        return Pt2Runtime.open(path, device=device, threads=threads)
