"""Reading the cells of a table from its file: CSV and similar formats, JSON lines, Parquet, plain lists."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipnets.data.decoding import EXTRA_OF_SUFFIX, SUFFIXES
from skipnets.data.listing import counted
from skipnets.data.multi_label import SEPARATORS
from skipnets.errors import UserError, needs_extra, one_line
from skipnets.terminal import from_csv_text

__all__ = ["TABLE_SUFFIXES", "Table", "looks_like_path", "read_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")


@dataclass
class Table:
    """A table's cells as text.

    Attributes:
        path: The file.
        names: Of the columns; "1", "2", … where the file has no header.
        rows: Each with one cell a column.
        lines: Where each row stands in the file, counted from 1.
        notes: How the file was read.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: list[str]

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        position = self.names.index(name)
        return [row[position] for row in self.rows]

    def columns_beside(self, used: Mapping[str, str]) -> list[str]:
        """The columns that are none of these, which are given by what they hold."""
        return [name for name in self.names if name not in used.values()]


def read_table(path: Path) -> Table:
    """Read a table of one of `TABLE_SUFFIXES`.

    Raises:
        UserError: It cannot be read, or is not what its suffix says.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _read_parquet(path)
        text, notes = _decode(path.read_bytes(), path)
        return (
            _read_json_lines(path, text, notes)
            if suffix in (".jsonl", ".ndjson")
            else _read_delimited(path, text, notes)
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _decode(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Text in UTF-8 or, with a byte order mark, UTF-16; else in Windows' code page, which is said."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16"), []
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not whole UTF-16 text ({error})") from error
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        if b"\0" in content:
            raise UserError(f"{path}: not a text file") from None
        return content.decode("cp1252", errors="replace"), [f"{path.name} is not UTF-8; read as Windows-1252"]


def _read_parquet(path: Path) -> Table:
    with needs_extra("train"):
        import pyarrow
        from pyarrow import parquet
    try:
        table = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file ({one_line(error)})") from error
    columns = zip(table.column_names, table.columns, strict=True)  # two may have one name
    cells = [[_cell(value, path, name) for value in column.to_pylist()] for name, column in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(path, list(table.column_names), rows, list(range(1, len(rows) + 1)), [])


def _read_json_lines(path: Path, text: str, notes: list[str]) -> Table:
    objects: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):  # other line breaks may stand within a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: must be an object such as {{"path": …, "label": …}}')
        objects.append((number, row))
    names = list(dict.fromkeys(name for _, row in objects for name in row))
    rows = [[_cell(row.get(name), path, name) for name in names] for _, row in objects]
    return Table(path, names, rows, [number for number, _ in objects], notes)


def _cell(value: object, path: Path, column: str) -> str:
    """A value as text; whole numbers without a fraction, whatever a table stores them as."""
    if value is None or value != value:  # the last is true of NaN alone
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | dict | bytes):
        if isinstance(value, list) and len(value) == 1 and not _is_phrase(value[0]):
            return _cell(value[0], path, column)
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return str(value["path"])  # an image in Hugging Face's form
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_phrase(value: object) -> bool:
    """Whether a text would be several names, were it not in a list."""
    return isinstance(value, str) and any(each in value for each in SEPARATORS)


def _read_delimited(path: Path, text: str, notes: list[str]) -> Table:
    """Rows of CSV, TSV and lists.

    The apostrophe before what a spreadsheet would take for a formula, as `skipnets audit --write` puts it, is
    taken off: `'@home` is `@home`. Names that do begin with an apostrophe and =, @, + or - have it doubled.
    """
    delimiter = _delimiter(path, text)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        if delimiter == " ":
            for number, line in enumerate(text.splitlines(), 1):
                if words := line.strip().rsplit(None, 1):  # the paths of a list may hold blanks
                    rows.append(words)
                    lines.append(number)
        else:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append(row)
                    lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    if not rows:
        raise UserError(f"{path}: lists no images")
    if delimiter == " " or any(looks_like_path(cell) for cell in rows[0]):
        names = [str(number) for number in range(1, len(rows[0]) + 1)]
        notes = [*notes, f"{path.name} has no header; its columns are counted from 1"]
    else:
        names = [from_csv_text(cell.strip()) for cell in rows.pop(0)]
        lines.pop(0)
    for number, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise UserError(f"{path}, line {number}: has {counted(len(row), 'value')}, not {len(names)}")
    if delimiter != " ":
        rows = [[from_csv_text(cell) for cell in row] for row in rows]
    return Table(path, names, rows, lines, notes)


def _delimiter(path: Path, text: str) -> str:
    """Tab, semicolon or comma, whichever the first line holds; a list without any is split at blanks."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((line for line in text.splitlines() if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    counts = {delimiter: unquoted.count(delimiter) for delimiter in "\t;,"}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    if counts[best]:
        return best
    return " " if path.suffix.lower() == ".txt" else ","


def looks_like_path(cell: str) -> bool:
    """Whether a cell ends as the files of images do."""
    return cell.strip().lower().endswith((*SUFFIXES, *EXTRA_OF_SUFFIX))
