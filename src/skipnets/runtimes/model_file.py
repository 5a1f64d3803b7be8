"""Read and write model files: safetensors files with JSON metadata under the key "skipnets".

Only the file format is validated here (complete, ours, a known version). `skipnets.description` validates the
metadata, and runtimes validate the tensors. Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.models.registry import rename_version_1_fields

__all__ = [
    "FORMAT_VERSION",
    "ModelFile",
    "member_name",
    "metadata_text",
    "parse_metadata",
    "read_model_file",
    "write_model_file",
]

FORMAT_VERSION = 2
_KEY = "skipnets"
_MEMBER = re.compile(r"members\.(0|[1-9][0-9]{0,2})\.(.+)")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file whose header was read; its tensors are still on disk.

    Args:
        path: The file.
        metadata: The JSON object under the key "skipnets".
        shapes: The shape of every tensor.
    """

    path: Path
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters; running statistics of norms do not count."""
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if name.rpartition(".")[2] not in _STATISTICS
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Read all tensors.

        Raises:
            UserError: If the file no longer matches its header, or holds a type that numpy does not have.
        """
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                return {name: file.get_tensor(name) for name in self.shapes}
        except (OSError, safetensors.SafetensorError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{self.path}: its tensors cannot be read ({error})") from error

    def members(self) -> list[dict[str, NDArray[Any]]]:
        """Read the tensors of each network of an ensemble.

        Raises:
            UserError: As `tensors`, or if there are tensors of no network.
        """
        found: dict[int, dict[str, NDArray[Any]]] = {}
        for name, tensor in self.tensors().items():
            if (match := _MEMBER.fullmatch(name)) is None:
                raise UserError(f"{self.path}: the tensor {name[:100]} belongs to no network of the ensemble")
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        return [found[number] for number in sorted(found)]


def read_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Read the header of a model file, or of the one in a run folder.

    Raises:
        UserError: If it is missing, truncated, damaged, not a model file, or from a newer version.
    """
    path = Path(path)
    try:
        path = _locate(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: {_diagnosis(path)}") from error
    if text is None:
        raise UserError(
            f"{path} holds bare weights, not a classifier: load them with "
            "skipnets.create_model(name, weights=...) or train with them"
        )
    return ModelFile(path=path, metadata=parse_metadata(path, text), shapes=shapes)


def member_name(number: int, tensor: str) -> str:
    """The name in a file of a tensor of an ensemble's network."""
    return f"members.{number}.{tensor}"


def write_model_file(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a model file atomically.

    Args:
        path: Where to write; an existing file is replaced.
        metadata: JSON values; the format's version is added.
        tensors: C-contiguous tensors by state-dict name.

    Raises:
        UserError: If it cannot be written.
    """
    text = metadata_text({"format_version": FORMAT_VERSION, **metadata})
    with atomic_path(path) as temporary:
        # Not save_file: it makes files that only their owner may read, whatever the umask says.
        temporary.write_bytes(safetensors.numpy.save(dict(tensors), metadata={_KEY: text}))


def _locate(path: Path) -> Path:
    if path.is_dir():
        inside = path / run_folder.MODEL
        if not inside.is_file():
            raise UserError(
                f"{path} is a folder without {run_folder.MODEL}: name a run folder or a model file"
            )
        return inside
    if not path.exists():
        raise UserError(f"{path} does not exist: name a model file ({run_folder.MODEL}) or a run folder")
    if not path.is_file():  # reading from a pipe may never end
        raise UserError(f"{path}: a pipe, a socket or a device, not a model file")
    return path


def _diagnosis(path: Path) -> str:
    """Why a file could not be read: truncated, damaged, or of another type."""
    with path.open("rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    if start[:2] in (b"PK", b"\x80\x02"):
        return (
            "a PyTorch checkpoint, not a model file; its weights can be loaded with "
            "skipnets.create_model(name, weights=...)"
        )
    if size < 9 or start[8:9] == b"{":
        return f"a truncated or damaged model file ({size} bytes)"
    return f"not a model file: {run_folder.MODEL} is what a training run writes"


def parse_metadata(path: Path, text: str) -> dict[str, Any]:
    """Parse the metadata of a file, and convert them from older format versions.

    Raises:
        UserError: If they are damaged or from a newer version.
    """
    try:
        metadata = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged metadata (not JSON)") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{path}: damaged metadata (no format_version)")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this skipnets reads up to {FORMAT_VERSION}: "
            'pip install --upgrade "skipnets"'
        )
    assert isinstance(metadata, dict)
    return _from_version_1(metadata) if version == 1 else metadata


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON; what is not valid Unicode, such as a byte of a folder's name, is escaped."""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _from_version_1(metadata: dict[str, Any]) -> dict[str, Any]:
    """Convert metadata of format version 1 (skipnets 0.1)."""
    metadata = _images_renamed(metadata)
    if isinstance(metadata.get("architecture"), dict):
        metadata["architecture"] = rename_version_1_fields(metadata["architecture"])
    return metadata


def _images_renamed(value: Any) -> Any:
    """Rename version 0.1's key "pictures" to "images", at any depth."""
    if not isinstance(value, dict):
        return value
    return {"images" if key == "pictures" else key: _images_renamed(inner) for key, inner in value.items()}
