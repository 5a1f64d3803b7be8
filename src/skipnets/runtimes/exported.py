"""Exported networks: graphs in another library's format that carry a classifier's metadata with them.

The metadata are one JSON text, the same as in a model file with one more key: "export", which says what the
graph takes and how it was checked. Only form is judged here. Needs no torch unless a .pt2 is opened.

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
        metadata: What the file says about the classifier.
        runtime: What runs it.
    """

    path: Path
    metadata: dict[str, Any]
    runtime: Runtime


def export_format(path: str | os.PathLike[str]) -> ExportFormat | None:
    """Which format a path is in, by its name; None for whatever else it may be."""
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
        runtime: "auto", or the runtime that this must be.
        device: "auto", "cpu", ...
        threads: How many CPU threads compute; None leaves it to the runtime.

    Raises:
        UserError: If it is missing, damaged or not made by `skipnets export`, or cannot run here.
    """
    path = Path(path)
    kind = export_format(path)
    assert kind is not None
    if runtime not in ("auto", _RUNTIMES[kind]):
        instead = (
            "give the model file or run folder that it was made from"
            if runtime == "torch"
            else "for another runtime, export the model file again: "
            f"skipnets export MODEL --format {'|'.join(EXPORT_FORMATS)}"
        )
        raise UserError(f'{path} runs in "{_RUNTIMES[kind]}" only, not in "{runtime}": {instead}')
    if kind == "openvino" and path.suffix.lower() == ".xml":
        path = path.parent
    if not path.exists():
        raise UserError(f"{path} does not exist: give a model file, an export or a run folder")
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    opened, text = _open(kind, path, device, threads)
    if text is None:
        raise UserError(
            f"{path} was not written by skipnets export: it carries no classes and no preprocessing"
        )
    metadata = parse_metadata(path, text)
    takes = metadata.get("export", {}).get("input") if isinstance(metadata.get("export"), dict) else None
    if takes not in get_args(InputType):
        raise UserError(f"{path}: damaged metadata (export.input is {takes!r})")
    opened.input_type = cast(InputType, takes)
    return Exported(path=path, metadata=metadata, runtime=opened)


def _open(kind: ExportFormat, path: Path, device: str, threads: int | None) -> tuple[Any, str | None]:
    """The runtime, and the metadata that the file carries."""
    with needs_extra():
        if kind == "onnx":
            from skipnets.runtimes.onnxruntime import OnnxRuntime

            return OnnxRuntime.open(path, device=device, threads=threads)
        if kind == "openvino":
            from skipnets.runtimes.openvino import OpenVINORuntime

            return OpenVINORuntime.open(path, device=device, threads=threads)
        from skipnets.runtimes.pt2 import Pt2Runtime

        return Pt2Runtime.open(path, device=device, threads=threads)
