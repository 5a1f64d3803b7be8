"""The labels of a manifest's rows as texts: one class, several labels, or numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import get_args

import numpy as np

from skipnets.data.layout import BLANKS, spelled
from skipnets.data.listing import Listing, counted
from skipnets.data.manifest_columns import Roles
from skipnets.data.manifest_tables import Table
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
from skipnets.data.targets import read_numbers, target_texts
from skipnets.errors import UserError, listed

__all__ = ["read_labels", "without_marks"]


def read_labels(
    table: Table, roles: Roles, listing: Listing, *, task: Task, uncertain: Uncertain
) -> list[str]:
    """The label of each row as the text of an `Entry`; what labels they are is written to the listing.

    Args:
        table: Its cells.
        roles: What its columns hold.
        listing: Gets its classes, whether there are several or numbers, notes and warnings.
        task: Whether images have one label, several or numbers; "auto" decides by the columns.
        uncertain: How -1 in a label's own column is treated.

    Raises:
        UserError: A cell is wrong, or names cannot be told apart.
    """
    if uncertain != "ignore" and (not roles.labels or task == "regression"):
        listing.warnings.append(without_marks(uncertain))
    if task == "regression":
        return _number_labels(table, roles.labels, listing)
    if roles.labels:
        return _mark_labels(table, roles.labels, uncertain, listing)
    if _has_several(table, roles.used["label"], task):
        return _list_labels(table, roles.used["label"], listing)
    labels = [_only_name(cell) for cell in table.column(roles.used["label"])]
    if any(label != label.strip(BLANKS) for label in labels):
        listing.notes.append("blanks around class names are left out")
    return labels


def without_marks(uncertain: str) -> str:
    """What to say where an option about uncertain marks (-1) has no effect."""
    return f"uncertain={uncertain}: has no effect, as there is no column of 0, 1 and -1 for each label"


def _has_several(table: Table, name: str, task: Task) -> bool:
    """Whether a column lists several labels in a cell."""
    if task != "auto":
        return task == "multi-label"
    plural = re.sub(r"[\s-]+", "_", name.strip().lower()).endswith("labels")
    return plural and any("|" in cell or cell.startswith("[") for cell in table.column(name))


def _mark_labels(table: Table, names: Sequence[str], uncertain: Uncertain, listing: Listing) -> list[str]:
    """The labels of each row as one text, from a column for each label."""
    classes = _spelled_apart(table, names)
    marks = np.empty((len(table.rows), len(names)), np.float32)
    unsure = 0
    for index, name in enumerate(names):
        cells = table.column(name)
        mark_of = {cell: read_mark(cell, uncertain) for cell in set(cells)}
        for line, cell in zip(table.lines, cells, strict=True):
            if mark_of[cell] is None:
                raise UserError(
                    f"{table.path}, line {line}: {name}={cell!r}: must be 1 (present), 0 (absent), "
                    "-1 (uncertain) or empty (unknown)"
                )
        marks[:, index] = np.array([mark_of[cell] for cell in cells], np.float32)
        doubtful = {
            cell for cell in mark_of if read_mark(cell, "positive") == 1 and read_mark(cell, "negative") == 0
        }
        unsure += sum(cell in doubtful for cell in cells)
    check_names(classes)
    listing.multi_label, listing.classes = True, classes
    listing.notes.append(f"each file has any number of {counted(len(names), 'label')}: {listed(classes, 20)}")
    if unsure:
        meaning = {"ignore": "treated as unknown"}.get(uncertain, f"treated as {uncertain}")
        others = ", ".join(each for each in get_args(Uncertain) if each != uncertain)
        listing.notes.append(f"{unsure:,} uncertain marks (-1) are {meaning}; --uncertain {others} otherwise")
    return label_texts(marks, classes)


def _number_labels(table: Table, names: Sequence[str], listing: Listing) -> list[str]:
    """The targets of each row as one text."""
    numbers = read_numbers(table.path, {name: table.column(name) for name in names}, table.lines)
    listing.regression, listing.classes = True, _spelled_apart(table, names)
    listing.notes.append(f"the numbers to predict are {listed(listing.classes, 20)}")
    if unknown := int(np.isnan(numbers).sum()):
        listing.notes.append(
            f"{counted(unknown, 'empty cell')}: these numbers are missing, and count in no loss or metric"
        )
    return target_texts(numbers)


def _spelled_apart(table: Table, names: Sequence[str]) -> list[str]:
    """The names of columns as those of labels or targets.

    Raises:
        UserError: If two become one.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(spelled(name), name)) != name:
            raise UserError(
                f"{table.path}: columns {other!r} and {name!r} are spelled alike; rename one of them"
            )
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


def _list_labels(table: Table, name: str, listing: Listing) -> list[str]:
    """The labels of each row as one text, from a column that lists them in each cell."""
    cells = table.column(name)
    separator = separator_of(cells)
    try:
        rows = [[spelled(each) for each in names_in_cell(cell, separator)] for cell in cells]
        classes = sorted({each for row in rows for each in row})
        check_names(classes)
    except UserError as error:
        raise UserError(f"{table.path}: {name}: {error}") from error
    if not classes:
        raise UserError(f"{table.path}: {name} is empty in every row")
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
        f"each file has any number of {counted(len(classes), 'label')}, which {name} lists with "
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
