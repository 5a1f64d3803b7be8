"""Write tables as Parquet, CSV or JSON lines, by the file's extension."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, missing_extra
from skipnets.files import atomic_path
from skipnets.terminal import csv_rows, csv_text

__all__ = ["check_table_path", "write_table"]

Column = Sequence[str | float | int | None] | NDArray[Any]


def check_table_path(path: str | os.PathLike[str], option: str) -> None:
    """Check, before the work that fills it, that a table can be written to a path.

    Args:
        path: Where it is to be written.
        option: The name of the argument that gives the path, for the error.

    Raises:
        UserError: If `write_table` does not support the extension, or its library is missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl"):
        raise UserError(f"{option}={path}: must end in .parquet, .csv or .jsonl")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("train")


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Column]) -> None:
    """Write a table atomically.

    Args:
        path: Ends in .parquet, .csv or .jsonl.
        columns: Name → values, all of one length.

    Raises:
        UserError: If the extension is another one, or the file cannot be written.
    """
    check_table_path(path, "path")
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    with atomic_path(path) as temporary:
        writers[Path(path).suffix.lower()](temporary, columns)


def _write_parquet(path: Path, columns: Mapping[str, Column]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: _valid_text(values) for name, values in columns.items()})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _write_csv(path: Path, columns: Mapping[str, Column]) -> None:
    # File names need not be valid UTF-8; surrogateescape preserves their bytes. All names stay as they are
    # but those that a spreadsheet would take for a formula.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv_rows(file)
        writer.writerow(map(csv_text, columns))  # names of targets come from outside, too
        writer.writerows(zip(*map(_for_csv, columns.values()), strict=True))


def _write_jsonl(path: Path, columns: Mapping[str, Column]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in zip(*map(_listed, columns.values()), strict=True):
            file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")


def _listed(values: Column) -> Sequence[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _for_csv(values: Column) -> Sequence[Any]:
    return [csv_text(value) for value in _shortest_text(values)]


def _shortest_text(values: Column) -> Sequence[Any]:
    """Values with float32 as the shortest text that reads back the same: 0.1, not 0.10000000149011612."""
    is_float = isinstance(values, np.ndarray) and values.dtype.kind == "f"
    return np.asarray(values).astype(str).tolist() if is_float else _listed(values)


def _valid_text(values: Column) -> Column:
    """Text as valid UTF-8, which Parquet needs; other bytes of a file name become �."""
    if isinstance(values, np.ndarray):
        return values
    return [
        value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value
        for value in values
    ]
