"""Exported networks: graphs in another library's format that carry a classifier's metadata.

The metadata are one JSON text, as in a model file with one more key, "export": the graph's input type and how
it was checked. `skipnets.description` validates them. Needs no torch unless a .pt2 is run.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipnets.description import check_export
from skipnets.errors import UserError, needs_extra
from skipnets.runtimes.archive import Archive
from skipnets.runtimes.graph_format import EXPORT_FORMATS, OPENVINO_GRAPH, ExportFormat
from skipnets.runtimes.model_file import parse_metadata
from skipnets.runtimes.runtime import Runtime

__all__ = ["Exported", "export_format", "open_exported", "read_export_metadata"]

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
    _check_exists(path)
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    with needs_extra():
        opened, text = _open(kind, path, device, threads)
    metadata = _parse(path, text)
    opened.input_type = metadata["export"]["input"]
    return Exported(path=path, metadata=metadata, runtime=opened)


def read_export_metadata(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The file or folder of an export, and its metadata; a .pt2 is read without torch.

    Raises:
        UserError: As `open_exported`, except for problems in the network.
    """
    if export_format(path) != "pt2":
        opened = open_exported(path)
        return opened.path, opened.metadata
    path = Path(path)
    _check_exists(path)
    with closing(Archive(path)) as archive:
        return path, _parse(path, archive.metadata)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist: name a model file, an export or a run folder")
    if not (path.is_file() or path.is_dir()):  # reading from a pipe may never end
        raise UserError(f"{path}: a pipe, a socket or a device, not an export")


def _parse(path: Path, text: str | None) -> dict[str, Any]:
    """The metadata of an export, of which "export" is validated."""
    if text is None:
        raise UserError(
            f"{path} was not written by skipnets export: it carries no classes and no preprocessing"
        )
    metadata = parse_metadata(path, text)
    check_export(path, metadata)
    return metadata


def _open(kind: ExportFormat, path: Path, device: str, threads: int | None) -> tuple[Any, str | None]:
    """Open a runtime, and read the metadata in the file."""
    if kind == "onnx":
        from skipnets.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime.open(path, device=device, threads=threads)
    if kind == "openvino":
        from skipnets.runtimes.openvino import OpenVINORuntime

        return OpenVINORuntime.open(path, device=device, threads=threads)
    from skipnets.runtimes.pt2 import Pt2Runtime

    return Pt2Runtime.open(path, device=device, threads=threads)
