"""Reading a table of images and labels: CSV and similar formats, JSON lines, Parquet, plain lists.

Columns are recognized by their names where these leave no doubt. What was recognized is said, and so is every
column that is not used.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import ntpath
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np

from skipnets.data.decoding import EXTRA_OF_SUFFIX, SUFFIXES
from skipnets.data.layout import BLANKS, spelled
from skipnets.data.listing import Entry, Listing, counted
from skipnets.data.multi_label import (
    SEPARATORS,
    Uncertain,
    check_names,
    label_texts,
    names_in_cell,
    read_mark,
    separator_of,
)
from skipnets.data.options import Task
from skipnets.data.split_names import split_named
from skipnets.data.targets import as_number, read_numbers, target_texts
from skipnets.errors import UserError, listed, near_matches, needs_extra, one_line
from skipnets.terminal import from_csv_text

MANIFEST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
# A table of these names in a folder describes its images (the "imagefolder" of Hugging Face's datasets).
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

_COLUMN_NAMES = {
    "path": (
        *("path", "image", "filename", "file_name", "file", "filepath", "file_path", "image_path", "img"),
        *("image_name", "image_file", "img_path", "img_name", "image_id", "imageid", "relative_path"),
    ),
    "label": (
        *("label", "class", "target", "labels", "class_name", "label_name", "category", "class_label"),
        "finding_labels",
    ),
    "split": ("split", "subset", "partition", "set", "data_split"),
    # What `skipnets audit --write` writes. Other names, such as "group", may mean anything.
    "group": ("split_group",),
}
# Columns whose rows belong together: two images of one patient must not be in two splits.
_GROUP_WORDS = (
    *("patient", "subject", "study", "slide", "case", "camera", "individual", "person", "participant"),
    *("animal", "site", "session", "scene", "sequence", "video"),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a manifest hold what, by name, or by number from 1 where there is no header.

    Attributes:
        path: The image files. Default: recognized by its name.
        label: The classes; recognized likewise.
        labels: Columns of one label each, where an image has several. Default: all columns of 0, 1, -1 and
            nothing, where no column holds the classes.
        targets: Columns of numbers to predict. Default, for regression: the one column of numbers.
        split: The splits; recognized likewise, if there is one.
        group: What must not be divided among splits. Default: split_group, if there is such a column.
    """

    path: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


class MissingFilesError(UserError):
    """A manifest lists files that are not there.

    Attributes:
        names: All of them.
    """

    def __init__(self, manifest: Path, names: Sequence[str], *, of: int, root: Path) -> None:
        super().__init__(
            f"{manifest}: {len(names):,} of {of:,} listed files are not below {root}: {listed(names, 20)}; "
            "--root names another folder, --missing skip leaves them out"
        )
        self.names = list(names)


def find_listed(
    path: Path,
    *,
    columns: Columns,
    root: Path | None = None,
    missing: str = "error",
    task: Task = "auto",
    uncertain: Uncertain = "ignore",
) -> Listing:
    """Find the images that a manifest lists.

    Args:
        path: A .csv, .tsv, .txt, .jsonl, .ndjson or .parquet file.
        columns: Which columns hold what.
        root: What relative paths start from. Default: the manifest's folder.
        missing: "error", or "skip" for going on without files that are not there.
        task: Whether images have one label, several or numbers; "auto" decides by the columns.
        uncertain: What -1 in a label's own column is taken for.

    Raises:
        UserError: The columns cannot be recognized, a row is wrong, or a file is missing.
    """
    table = _read_table(path)
    root = path.parent if root is None else root
    if not table.rows:
        raise UserError(f"{path}: lists no images")
    used = _recognize(path, table, columns, root)
    if columns.targets:
        task = "regression"
    if task == "regression":
        label_columns = _target_columns(path, table, columns, used)
    else:
        label_columns = _label_columns(path, table, columns, used, task, uncertain)
    if not label_columns and "label" not in used:
        used["label"] = _label_column(path, table, used, task)
    if "group" not in used and (candidates := _named(_free(table, used), "group")):
        used["group"] = candidates[0]
    _check_names_of_columns(path, table, [*used.values(), *label_columns])
    listing = Listing(layout="manifest", root=root, notes=table.notes)
    listing.columns = dict.fromkeys(table.names, "") | {name: role for role, name in used.items()}
    listing.columns |= dict.fromkeys(label_columns, "target" if task == "regression" else "label")
    if task == "regression":
        labels = _number_labels(path, table, label_columns, listing)
    elif label_columns:
        labels = _mark_labels(path, table, label_columns, uncertain, listing)
        if not columns.labels:
            listing.warnings += _nearly_marked(path, table, used, label_columns)
    elif _has_several(table, used["label"], task):
        labels = _list_labels(path, table, used["label"], listing)
    else:
        labels = [_only_name(cell) for cell in _column(table, used["label"])]
        if any(label != label.strip(BLANKS) for label in labels):
            listing.notes.append("blanks around class names are left out")
    if uncertain != "ignore" and (not label_columns or listing.regression):
        listing.warnings.append(without_marks(uncertain))
    rows = _values(path, table, used, labels, several=listing.multi_label or listing.regression)
    names = _resolve(path, [row.name for row in rows], root, listing, missing)
    listing.entries = _without_repetitions(
        path, [row._replace(name=name) for row, name in zip(rows, names, strict=True) if name], listing
    )
    if not listing.entries:
        raise UserError(f"{path}: lists no images that are there")
    _name_unused(table, listing)
    return listing


def without_marks(uncertain: str) -> str:
    """What to say where an option about uncertain marks (-1) has no effect."""
    return f"uncertain={uncertain}: has no effect, as there is no column of 0, 1 and -1 for each label"


def _check_names_of_columns(path: Path, table: _Table, names: Sequence[str]) -> None:
    """Check that the columns that are used can be told apart by their names.

    Raises:
        UserError: If two have one name.
    """
    for name in names:
        if table.names.count(name) > 1:
            raise UserError(
                f"{path}: {table.names.count(name)} columns are called {name!r}; rename them, or leave one"
            )


@dataclass
class _Table:
    """A table's cells as text.

    Attributes:
        names: Of the columns; "1", "2", … where the file has no header.
        rows: Each with one cell a column.
        lines: Where each row stands in the file, counted from 1.
        notes: How the file was read.
    """

    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: list[str]


def _read_table(path: Path) -> _Table:
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


def _read_parquet(path: Path) -> _Table:
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
    return _Table(list(table.column_names), rows, list(range(1, len(rows) + 1)), [])


def _read_json_lines(path: Path, text: str, notes: list[str]) -> _Table:
    objects: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.splitlines(), 1):
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
    return _Table(names, rows, [number for number, _ in objects], notes)


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


def _read_delimited(path: Path, text: str, notes: list[str]) -> _Table:
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
    if delimiter == " " or any(_looks_like_path(cell) for cell in rows[0]):
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
    return _Table(names, rows, lines, notes)


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


def _looks_like_path(cell: str) -> bool:
    return cell.strip().lower().endswith((*SUFFIXES, *EXTRA_OF_SUFFIX))


def _recognize(path: Path, table: _Table, columns: Columns, root: Path) -> dict[str, str]:
    """Which column is what: "path", "label", "split", "group" → name."""
    used: dict[str, str] = {}
    for role in ("path", "label", "split", "group"):
        given = getattr(columns, role)
        if given is not None:
            if given not in table.names:
                raise UserError(
                    f"{role}_column={given!r}: {path} has the columns {listed(table.names, 20)}"
                    f"{near_matches(given, table.names)}"
                )
            used[role] = given
    free = [name for name in table.names if name not in used.values()]
    if "path" not in used:
        candidates = _named(free, "path") or [name for name in free if _is_path_column(table, name, root)]
        used["path"] = _only(path, table, "path", candidates)
    free = [name for name in free if name != used["path"]]
    if "split" not in used:
        candidates = _named(free, "split")
        if not candidates and all(name.isdecimal() for name in table.names):
            candidates = [name for name in free if all(map(split_named, _column(table, name)))]
        if candidates:
            used["split"] = _only(path, table, "split", candidates)
    return used


def _free(table: _Table, used: Mapping[str, str]) -> list[str]:
    return [name for name in table.names if name not in used.values()]


def _label_column(path: Path, table: _Table, used: Mapping[str, str], task: Task) -> str:
    """The one column that holds the labels."""
    free = [name for name in _free(table, used) if name]  # pandas gives the numbers of rows no name
    candidates = _named(free, "label")
    if not candidates and len(free) == 1:
        candidates = free
    if not candidates and task == "multi-label":
        raise UserError(
            f"task={task}: {path} has no column of 0 and 1, nor one of labels; its columns are "
            f"{listed(table.names, 20)}; name them with --label-columns, or one with --label-column"
        )
    marked = [name for name in free if _is_marked(_column(table, name), "ignore")]
    if not candidates and len(marked) > 1:
        raise UserError(
            f"task={task}: {path} has a column of 0 and 1 for each of several labels ({listed(marked)}); "
            "task=multi-label reads them, and --label-column names one that holds classes"
        )
    doubtful = "" if candidates else "; ".join(_nearly_marked(path, table, used, ()))
    return _only(path, table, "label", candidates, hint=f" ({doubtful})" * bool(doubtful))


def _label_columns(
    path: Path,
    table: _Table,
    columns: Columns,
    used: Mapping[str, str],
    task: Task,
    uncertain: Uncertain,
) -> list[str]:
    """The columns that hold one label each; empty where one column holds the labels."""
    _check_given(path, table, used, "label_columns", columns.labels)
    if columns.labels:
        return list(dict.fromkeys(columns.labels))
    if task == "single-label" or "label" in used:
        return []
    free = _free(table, used)
    marked = [name for name in free if name and _is_marked(_column(table, name), uncertain)]
    named = _named(free, "label")
    if named and marked and task == "multi-label":
        raise UserError(
            f"{path}: {listed(named)} and the columns of 0 and 1 ({listed(marked)}) may both hold the "
            "labels; choose with --label-column or --label-columns"
        )
    # With one free column, its 0 and 1 are as well two classes.
    return marked if not named and len(marked) > (task == "auto") else []


def _check_given(
    path: Path, table: _Table, used: Mapping[str, str], option: str, names: Sequence[str]
) -> None:
    """Check that columns which an option names are there, and hold nothing else."""
    for name in names:
        if name not in table.names:
            raise UserError(
                f"{option}={name!r}: {path} has the columns {listed(table.names, 20)}"
                f"{near_matches(name, table.names)}"
            )
        if name in used.values():
            raise UserError(f"{option}={name!r}: holds something else already")


def _target_columns(path: Path, table: _Table, columns: Columns, used: Mapping[str, str]) -> list[str]:
    """The columns of numbers to predict: as they are named, or the only one of numbers that is not used."""
    _check_given(path, table, used, "targets", columns.targets)
    if columns.targets:
        return list(dict.fromkeys(columns.targets))
    free = [name for name in _free(table, used) if name and name not in _named(_free(table, used), "group")]
    found = [name for name in free if None not in map(as_number, _column(table, name))]
    # Without any of numbers, the only one that can be meant is read, which names the line that is none.
    found = _named(found, "label") or found or _named(free, "label") or free
    if len(found) == 1:
        return found
    numeric = bool(found) and None not in map(as_number, _column(table, found[0]))
    which = f"{listed(found, 20)} hold numbers" if numeric else f"its columns are {listed(table.names, 20)}"
    raise UserError(
        f"task=regression: {path}: which columns are to be predicted? {which}; name them with --targets"
    )


def _is_marked(cells: Sequence[str], uncertain: Uncertain) -> bool:
    """Whether a column says of each image whether it has a label."""
    marks = [read_mark(cell, uncertain) for cell in set(cells)]
    return None not in marks and any(mark in (0, 1) for mark in marks)


def _nearly_marked(
    path: Path, table: _Table, used: Mapping[str, str], label_columns: Sequence[str]
) -> Iterator[str]:
    """What to say of columns that most rows would make labels, and others do not."""
    for name in _free(table, used):
        cells = [(line, cell) for line, cell in zip(table.lines, _column(table, name), strict=True) if cell]
        others = [(line, cell) for line, cell in cells if read_mark(cell) is None]
        if name and name not in label_columns and 0 < len(others) < len(cells) / 2:
            line, cell = others[0]
            yield (
                f"column {name} is not taken for a label: line {line} of {path.name} holds {cell!r}, and a "
                "label has 1, 0, -1 or nothing"
            )


def _has_several(table: _Table, name: str, task: Task) -> bool:
    """Whether a column lists several labels in a cell."""
    if task != "auto":
        return task == "multi-label"
    plural = re.sub(r"[\s-]+", "_", name.strip().lower()).endswith("labels")
    return plural and any("|" in cell or cell.startswith("[") for cell in _column(table, name))


def _mark_labels(
    path: Path, table: _Table, names: Sequence[str], uncertain: Uncertain, listing: Listing
) -> list[str]:
    """The labels of each row as one text, from a column for each label."""
    classes = _spelled_apart(path, names)
    marks = np.empty((len(table.rows), len(names)), np.float32)
    unsure = 0
    for index, name in enumerate(names):
        cells = _column(table, name)
        mark_of = {cell: read_mark(cell, uncertain) for cell in set(cells)}
        for line, cell in zip(table.lines, cells, strict=True):
            if mark_of[cell] is None:
                raise UserError(
                    f"{path}, line {line}: {name}={cell!r}: must be 1 (present), 0 (absent), -1 (uncertain) "
                    "or empty (unknown)"
                )
        marks[:, index] = np.array([mark_of[cell] for cell in cells], np.float32)
        doubtful = {
            cell for cell in mark_of if read_mark(cell, "positive") == 1 and read_mark(cell, "negative") == 0
        }
        unsure += sum(cell in doubtful for cell in cells)
    check_names(classes)
    listing.multi_label, listing.classes = True, classes
    listing.notes.append(
        f"each image has any number of {counted(len(names), 'label')}: {listed(classes, 20)}"
    )
    if unsure:
        meaning = {"ignore": "taken for unknown"}.get(uncertain, f"taken for {uncertain}")
        others = ", ".join(each for each in get_args(Uncertain) if each != uncertain)
        listing.notes.append(f"{unsure:,} uncertain marks (-1) are {meaning}; --uncertain {others} otherwise")
    return label_texts(marks, classes)


def _number_labels(path: Path, table: _Table, names: Sequence[str], listing: Listing) -> list[str]:
    """The targets of each row as one text."""
    numbers = read_numbers(path, {name: _column(table, name) for name in names}, table.lines)
    listing.regression, listing.classes = True, _spelled_apart(path, names)
    listing.notes.append(f"the numbers to predict are {listed(listing.classes, 20)}")
    if unknown := int(np.isnan(numbers).sum()):
        listing.notes.append(
            f"{counted(unknown, 'empty cell')}: these numbers are missing, and count in no loss or metric"
        )
    return target_texts(numbers)


def _spelled_apart(path: Path, names: Sequence[str]) -> list[str]:
    """The names of columns as those of labels or targets.

    Raises:
        UserError: If two become one.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(spelled(name), name)) != name:
            raise UserError(f"{path}: columns {other!r} and {name!r} are spelled alike; rename one of them")
    return list(first)


def _only_name(cell: str) -> str:
    """A class that stands in a list of one name, as ["tabby, tabby cat"], without it."""
    if not cell.startswith('["'):
        return cell
    try:
        names = json.loads(cell)
    except ValueError:
        return cell
    return str(names[0]) if len(names) == 1 else cell


def _list_labels(path: Path, table: _Table, name: str, listing: Listing) -> list[str]:
    """The labels of each row as one text, from a column that lists them in each cell."""
    cells = _column(table, name)
    separator = separator_of(cells)
    try:
        rows = [[spelled(each) for each in names_in_cell(cell, separator)] for cell in cells]
        classes = sorted({each for row in rows for each in row})
        check_names(classes)
    except UserError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    if not classes:
        raise UserError(f"{path}: {name} is empty in every row")
    if not any(len(row) > 1 for row in rows):
        listing.warnings.append(
            f"no cell of {name} lists more than one label; names may be separated by | or ; or a comma"
        )
    others = [each for each in SEPARATORS if each != separator]
    if joined := [name for name in classes if _joins_others(name, classes, others)]:
        listing.warnings.append(
            f"labels that look like several: {listed(map(repr, joined))}; names are separated by "
            f'"{separator}" here, and by nothing else'
        )
    listing.multi_label, listing.classes = True, classes
    listing.notes.append(
        f"each image has any number of {counted(len(classes), 'label')}, which {name} lists with "
        f'"{separator}" between them; what it does not list is absent'
    )
    return ["|".join(row) for row in rows]


def _joins_others(name: str, classes: Sequence[str], separators: Sequence[str]) -> bool:
    """Whether a separator that is none here stands between a label and another."""
    return any(
        part.strip() in classes
        for separator in separators
        if separator in name
        for part in name.split(separator)
    )


def _named(names: Iterable[str], role: str) -> list[str]:
    """The columns with a name that is usual for this; one that is called just like it goes before others."""
    usual = [name for name in names if re.sub(r"[\s-]+", "_", name.strip().lower()) in _COLUMN_NAMES[role]]
    exact = [name for name in usual if name.lower() == role]
    return exact or usual


def _is_path_column(table: _Table, name: str, root: Path) -> bool:
    some = [cell for cell in _column(table, name)[:20] if cell]
    return bool(some) and all(_looks_like_path(cell) or (root / cell).is_file() for cell in some)


def _only(path: Path, table: _Table, role: str, candidates: Sequence[str], *, hint: str = "") -> str:
    if len(candidates) == 1:
        return candidates[0]
    option = f"--{role}-column"
    what = {"path": "image files", "label": "labels", "split": "splits"}[role]
    if candidates:
        raise UserError(f"{path}: {' and '.join(candidates)} may both hold the {what}; choose with {option}")
    raise UserError(
        f"{path}: which column holds the {what}? Its columns are {listed(table.names, 20)}; "
        f"name it with {option}{hint}"
    )


def _column(table: _Table, name: str) -> list[str]:
    position = table.names.index(name)
    return [row[position] for row in table.rows]


def _values(
    path: Path, table: _Table, used: Mapping[str, str], labels: Sequence[str], *, several: bool
) -> list[Entry]:
    """The rows as entries, with the paths as they are written.

    Args:
        path: The manifest.
        table: Its cells.
        used: Which columns hold what.
        labels: Of each row.
        several: Whether a row may have any number of labels, also none.
    """
    cells = {role: _column(table, name) for role, name in used.items()}
    for role in ("path", "group") if several else ("path", "label", "group"):
        empty = [
            line for line, cell in zip(table.lines, cells.get(role, ()), strict=False) if not cell.strip()
        ]
        if empty:
            any_number = role == "label" and any(each in cell for cell in cells[role] for each in SEPARATORS)
            raise UserError(
                f"{path}, line {empty[0]}: {used[role]} is empty, as in {counted(len(empty), 'row')}; "
                f"every image needs one{', unless it has any number: --task multi-label' * any_number}"
            )
    splits = [""] * len(table.rows)
    if "split" in cells:
        names = {value: split_named(value.strip()) for value in set(cells["split"])}
        for line, value in zip(table.lines, cells["split"], strict=True):
            if names[value] is None:
                raise UserError(
                    f"{path}, line {line}: {used['split']}={value!r}: must name one of train, val, test"
                )
        splits = [names[value] or "" for value in cells["split"]]
    groups = cells.get("group", [""] * len(table.rows))
    return [
        Entry(name.strip(), label if several else spelled(label), split, group.strip())
        for name, label, split, group in zip(cells["path"], labels, splits, groups, strict=True)
    ]


def _resolve(
    manifest: Path, written: Sequence[str], root: Path, listing: Listing, missing: str
) -> list[str | None]:
    """The files that are meant, below the root where they lie there; None for those that are missing."""
    with_slashes = [_with_slashes(name) for name in written]
    prefix = _foreign_prefix(with_slashes, root)
    if prefix:
        listing.notes.append(f'"{prefix}" in the paths is read as {root}')
    by_stem: dict[str, list[str]] | None = None
    resolved: list[str | None] = []
    absent = []
    for original, name in zip(written, with_slashes, strict=True):
        relative = name.removeprefix(prefix)
        found = next((one for one in (original, name, relative) if (root / one).is_file()), None)
        if found is None and not _looks_like_path(relative):
            # An identifier such as "ISIC_0001" stands for the one file that is called so.
            by_stem = _stems(root) if by_stem is None else by_stem
            candidates = by_stem.get(PurePosixPath(relative).name, [])
            found = candidates[0] if len(candidates) == 1 else None
        if found is None:
            absent.append(original)
        resolved.append(found and relative_name(root, found))
    if absent and missing != "skip":
        raise MissingFilesError(manifest, absent, of=len(written), root=root)
    if absent:
        listing.passed_over["listed files that are not there"] += len(absent)
        listing.warnings.append(f"{counted(len(absent), 'listed file')} not there: {listed(absent)}")
    return resolved


def relative_name(root: Path, name: str) -> str:
    """A path in its shortest form: relative to the root if it lies there, else absolute."""
    inside = os.path.relpath(root / name, root)
    return Path(os.path.abspath(root / name) if inside.startswith("..") else inside).as_posix()  # noqa: PTH100


def _with_slashes(name: str) -> str:
    """A path as it is written on Windows, or as a file URL, with forward slashes."""
    name = name.removeprefix("file://")
    return name.replace("\\", "/") if "\\" in name or ntpath.splitdrive(name)[0] else name


def _foreign_prefix(names: Sequence[str], root: Path) -> str:
    """The beginning that all absolute paths share and that is another machine's; "" if there is none."""
    first = names[0]
    if not (first.startswith("/") or re.match(r"[A-Za-z]:/", first)) or (root / first).is_file():
        return ""
    parts = first.split("/")
    for depth in range(1, len(parts)):
        if (root / "/".join(parts[depth:])).is_file():
            prefix = "/".join(parts[:depth]) + "/"
            return prefix if all(name.startswith(prefix) for name in names) else ""
    return ""


def _stems(root: Path) -> dict[str, list[str]]:
    """File name without suffix → the images below the root that are called so."""
    from skipnets.data.layout import images_below

    stems: dict[str, list[str]] = {}
    for image in images_below(root):
        stems.setdefault(image.stem, []).append(image.relative_to(root).as_posix())
    return stems


def _without_repetitions(path: Path, entries: Sequence[Entry], listing: Listing) -> list[Entry]:
    """Each file once.

    Raises:
        UserError: A file is listed with two labels, in two splits or in two groups.
    """
    first: dict[str, Entry] = {}
    for entry in entries:
        before = first.setdefault(entry.name, entry)
        if before is entry:
            continue
        for role, one, other in zip(entry._fields[1:], before[1:], entry[1:], strict=True):
            if one != other:
                hint = ""
                if role == "label" and listing.multi_label:
                    hint = "; all labels of an image go into one row, such as cat|dog"
                elif role == "label" and not listing.regression:
                    hint = (
                        "; several labels of an image go into one row, such as cat|dog, with --task "
                        "multi-label"
                    )
                what = "numbers" if role == "label" and listing.regression else role
                raise UserError(f"{path}: lists {entry.name} twice, with {what} {one!r} and {other!r}{hint}")
        listing.passed_over["rows that repeat another"] += 1
    return list(first.values())


def _name_unused(table: _Table, listing: Listing) -> None:
    used = listing.columns
    unused = [name for name in table.names if not used[name] and name]
    if unused:
        listing.notes.append(f"columns that are not used: {listed(unused, 20)}")
    if "group" in used.values():
        return
    for name in unused:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        sizes = Counter(_column(table, name))
        repeats = len(sizes) < len(table.rows) and len(sizes) > 1
        if repeats and any(word.rstrip("s") in _GROUP_WORDS or word in _GROUP_WORDS for word in words):
            listing.warnings.append(
                f"images of one {name} may end up in several splits, which makes results too good; "
                f"to keep each together: --group-column {name}"
            )


def find_metadata(folder: Path, *, any_label: bool = False) -> Path | None:
    """The table in a folder that describes its images, if it names files and labels.

    Args:
        folder: The folder.
        any_label: Whether a table counts whose columns of labels have names of their own.
    """
    for name in METADATA_FILES:
        path = folder / name
        if not path.is_file() or not _named(names := _read_table(path).names, "path"):
            continue
        if any_label or _named(names, "label"):
            return path
    return None


__all__ = [
    "MANIFEST_SUFFIXES",
    "Columns",
    "MissingFilesError",
    "find_listed",
    "find_metadata",
    "relative_name",
    "without_marks",
]
