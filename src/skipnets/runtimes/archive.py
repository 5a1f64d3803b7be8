"""The members of a .pt2 file, read as data: nothing in it is unpickled, evaluated or run. Needs no torch.

A .pt2 is a zip archive. `torch.export.load` would unpickle members, evaluate expressions and compile names
that stand in it. Here each member is known by its name, and others are refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from skipnets.errors import UserError, one_line
from skipnets.runtimes.graph_format import PT2_METADATA

__all__ = ["Archive"]

_GRAPH = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_EXTRA = f"extra/{PT2_METADATA}"
_BYTE_ORDER = "byteorder"
# The sample inputs are a pickle, which torch.export always writes, and which is never read.
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/model_constants_config\.json"
    rf"|data/sample_inputs/model\.pt|{re.escape(_EXTRA)}"
)
_LARGEST_TEXT = 1 << 28
_OLD_FORMAT = "serialized_exported_program.json"


class Archive:
    """An exported program's members.

    Args:
        path: The file.

    Raises:
        UserError: If it is no .pt2 file, or holds what could run code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            infos = self._zip.infolist()
            length = path.stat().st_size
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise UserError(f"{path} is not a readable .pt2 file ({one_line(error, 0)})") from error
        if any(info.filename == _OLD_FORMAT for info in infos):
            raise UserError(
                f"{path} was written by PyTorch before 2.9, whose files hold pickles, which are not opened: "
                "export the model file again"
            )
        # All members lie in one folder, whose name torch takes from the file's.
        self._members = {info.filename.partition("/")[2]: info for info in infos}
        for name in (_GRAPH, _WEIGHTS):
            if name not in self._members:
                raise UserError(f"{path} is not a readable .pt2 file (it lacks {name})")
        if len(self._members) != len(infos):
            raise UserError(f"{path} is not a readable .pt2 file (members of the same name)")
        for name, info in self._members.items():
            if not _KNOWN.fullmatch(name):
                raise UserError(
                    f"{path}: holds {name!r}, which could run code and is not opened; "
                    "skipnets export writes files without"
                )
            # So a small file cannot fill the memory.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > length:
                raise UserError(f"{path}: damaged ({name!r} is compressed)")
        if sum(info.file_size for info in infos) > length:
            raise UserError(f"{path}: damaged (its members overlap)")
        if _BYTE_ORDER in self._members and self.read(_BYTE_ORDER) != b"little":
            raise UserError(f"{path}: its numbers are not little-endian: export the model file again")
        if self.json(_CONSTANTS).get("config", {}) != {}:
            raise UserError(f"{path}: holds constants, which may be any object and are not opened")

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            UserError: If it is missing or damaged.
        """
        try:
            return self._zip.read(self._members[name])
        # RuntimeError: flags say that it is encrypted or (NotImplementedError) a patch.
        except (KeyError, OSError, zipfile.BadZipFile, ValueError, EOFError, RuntimeError) as error:
            raise UserError(f"{self.path}: damaged ({name!r} cannot be read)") from error

    def json(self, name: str) -> dict[str, Any]:
        """A member that is a JSON object; an absent one is empty."""
        if name not in self._members:
            return {}
        if self._members[name].file_size > _LARGEST_TEXT:
            raise UserError(f"{self.path}: damaged ({name!r} is too long)")
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: damaged ({name!r} is not JSON)") from error
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: damaged ({name!r} is not a JSON object)")
        return value

    @property
    def metadata(self) -> str | None:
        """The classifier's metadata; None if there are none."""
        if _EXTRA not in self._members:
            return None
        try:
            return self.read(_EXTRA).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: damaged metadata (not UTF-8)") from error

    @property
    def graph(self) -> dict[str, Any]:
        """The program, as torch.export describes it."""
        return self.json(_GRAPH)

    @property
    def weights(self) -> dict[str, Any]:
        """Name of a tensor → its type, shape and member."""
        config = self.json(_WEIGHTS).get("config")
        if not isinstance(config, dict):
            raise UserError(f"{self.path}: damaged (no weights)")
        return config

    def weight(self, member: object) -> bytes:
        """The bytes of a tensor, by the name of its member."""
        return self.read(f"data/weights/{member}")
