"""Which column of a manifest holds what: as options say, or by names and cells that leave no doubt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skipnets.data.manifest_tables import Table, looks_like_path
from skipnets.data.multi_label import Uncertain, read_mark
from skipnets.data.options import Task
from skipnets.data.split_names import split_named
from skipnets.data.targets import as_number
from skipnets.errors import UserError, listed, near_matches
from skipnets.files import is_file

__all__ = ["Columns", "Roles", "find_roles", "nearly_marked", "possible_groups", "usual_names"]

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


@dataclass(frozen=True)
class Roles:
    """What the columns of a table hold.

    Attributes:
        used: "path", "label", "split", "group" → the column, for those that there are.
        labels: The columns of one label each, or of one number each to predict; empty where one column holds
            the labels.
    """

    used: dict[str, str]
    labels: list[str]


def find_roles(table: Table, columns: Columns, *, root: Path, task: Task, uncertain: Uncertain) -> Roles:
    """Find which column holds what.

    Args:
        table: Its cells.
        columns: Which are named.
        root: What relative paths start from.
        task: Whether images have one label, several or numbers; "auto" decides by the columns.
        uncertain: How -1 in a label's own column is treated.

    Raises:
        UserError: A column that is named is not there, or one cannot be recognized.
    """
    used = _find_single(table, columns, root)
    if task == "regression":
        labels = _target_columns(table, columns, used)
    else:
        labels = _label_columns(table, columns, used, task, uncertain)
    if not labels and "label" not in used:
        used["label"] = _label_column(table, used, task)
    if "group" not in used and (candidates := usual_names(table.columns_beside(used), "group")):
        used["group"] = candidates[0]
    for name in (*used.values(), *labels):
        if (count := table.names.count(name)) > 1:
            raise UserError(f"{table.path}: {count} columns are called {name!r}; rename them, or leave one")
    return Roles(used, labels)


def _find_single(table: Table, columns: Columns, root: Path) -> dict[str, str]:
    """The columns of paths and splits, and those that are named: "path", "label", "split", "group" → name."""
    used: dict[str, str] = {}
    for role in ("path", "label", "split", "group"):
        given = getattr(columns, role)
        if given is not None:
            _check_there(table, f"{role}_column", given)
            used[role] = given
    free = table.columns_beside(used)
    if "path" not in used:
        candidates = usual_names(free, "path") or [
            name for name in free if _is_path_column(table, name, root)
        ]
        used["path"] = _only(table, "path", candidates)
    free = [name for name in free if name != used["path"]]
    if "split" not in used:
        candidates = usual_names(free, "split")
        if not candidates and all(name.isdecimal() for name in table.names):
            candidates = [name for name in free if all(map(split_named, table.column(name)))]
        if candidates:
            used["split"] = _only(table, "split", candidates)
    return used


def _label_column(table: Table, used: Mapping[str, str], task: Task) -> str:
    """The one column that holds the labels."""
    free = [name for name in table.columns_beside(used) if name]  # pandas gives the numbers of rows no name
    candidates = usual_names(free, "label")
    if not candidates and len(free) == 1:
        candidates = free
    if not candidates and task == "multi-label":
        raise UserError(
            f"task={task}: {table.path} has no column of 0 and 1, nor one of labels; its columns are "
            f"{listed(table.names, 20)}; name them with --label-columns, or one with --label-column"
        )
    marked = [name for name in free if _is_marked(table.column(name), "ignore")]
    if not candidates and len(marked) > 1:
        raise UserError(
            f"task={task}: {table.path} has a column of 0 and 1 for each of several labels "
            f"({listed(marked)}); task=multi-label reads them, --label-column names one that holds classes"
        )
    doubtful = "" if candidates else "; ".join(nearly_marked(table, Roles(dict(used), [])))
    return _only(table, "label", candidates, hint=f" ({doubtful})" * bool(doubtful))


def _label_columns(
    table: Table,
    columns: Columns,
    used: Mapping[str, str],
    task: Task,
    uncertain: Uncertain,
) -> list[str]:
    """The columns that hold one label each; empty where one column holds the labels."""
    _check_given(table, used, "label_columns", columns.labels)
    if columns.labels:
        return list(dict.fromkeys(columns.labels))
    if task == "single-label" or "label" in used:
        return []
    free = table.columns_beside(used)
    marked = [name for name in free if name and _is_marked(table.column(name), uncertain)]
    named = usual_names(free, "label")
    if named and marked and task == "multi-label":
        raise UserError(
            f"{table.path}: {listed(named)} and the columns of 0 and 1 ({listed(marked)}) may both hold the "
            "labels; choose with --label-column or --label-columns"
        )
    # With one free column, its 0 and 1 are as well two classes.
    return marked if not named and len(marked) > (task == "auto") else []


def _check_given(table: Table, used: Mapping[str, str], option: str, names: Sequence[str]) -> None:
    """Check that columns which an option names are there, and hold nothing else."""
    for name in names:
        _check_there(table, option, name)
        if name in used.values():
            raise UserError(f"{option}={name!r}: holds something else already")


def _check_there(table: Table, option: str, name: str) -> None:
    if name not in table.names:
        raise UserError(
            f"{option}={name!r}: {table.path} has the columns {listed(table.names, 20)}"
            f"{near_matches(name, table.names)}"
        )


def _target_columns(table: Table, columns: Columns, used: Mapping[str, str]) -> list[str]:
    """The columns of numbers to predict: as they are named, or the only one of numbers that is not used."""
    _check_given(table, used, "targets", columns.targets)
    if columns.targets:
        return list(dict.fromkeys(columns.targets))
    free = table.columns_beside(used)
    groups = usual_names(free, "group")
    free = [name for name in free if name and name not in groups]
    numeric = [name for name in free if None not in map(as_number, table.column(name))]
    # Without any of numbers, the only one that can be meant is read, which names the line that is none.
    found = usual_names(numeric, "label") or numeric or usual_names(free, "label") or free
    if len(found) == 1:
        return found
    which = f"{listed(numeric, 20)} hold numbers" if numeric else f"its columns are {listed(table.names, 20)}"
    raise UserError(
        f"task=regression: {table.path}: which columns are to be predicted? {which}; name them with --targets"
    )


def _is_marked(cells: Sequence[str], uncertain: Uncertain) -> bool:
    """Whether a column says of each image whether it has a label."""
    marks = [read_mark(cell, uncertain) for cell in set(cells)]
    return None not in marks and any(mark in (0, 1) for mark in marks)


def nearly_marked(table: Table, roles: Roles) -> Iterator[str]:
    """What to say of columns that most rows would make labels, and others do not."""
    for name in table.columns_beside(roles.used):
        cells = [(line, cell) for line, cell in zip(table.lines, table.column(name), strict=True) if cell]
        others = [(line, cell) for line, cell in cells if read_mark(cell) is None]
        if name and name not in roles.labels and 0 < len(others) < len(cells) / 2:
            line, cell = others[0]
            yield (
                f"column {name} is not used as a label: line {line} of {table.path.name} holds {cell!r}, "
                "and a label has 1, 0, -1 or nothing"
            )


def usual_names(names: Iterable[str], role: str) -> list[str]:
    """The columns with a name that is usual for this; one that is called just like it goes before others."""
    usual = [name for name in names if re.sub(r"[\s-]+", "_", name.strip().lower()) in _COLUMN_NAMES[role]]
    exact = [name for name in usual if name.lower() == role]
    return exact or usual


def _is_path_column(table: Table, name: str, root: Path) -> bool:
    some = [cell for cell in table.column(name)[:20] if cell]
    return bool(some) and all(looks_like_path(cell) or is_file(root / cell) for cell in some)


def _only(table: Table, role: str, candidates: Sequence[str], *, hint: str = "") -> str:
    if len(candidates) == 1:
        return candidates[0]
    option = f"--{role}-column"
    what = {"path": "image files", "label": "labels", "split": "splits"}[role]
    if candidates:
        raise UserError(
            f"{table.path}: {' and '.join(candidates)} may both hold the {what}; choose with {option}"
        )
    raise UserError(
        f"{table.path}: which column holds the {what}? Its columns are {listed(table.names, 20)}; "
        f"name it with {option}{hint}"
    )


def possible_groups(table: Table, unused: Sequence[str]) -> Iterator[str]:
    """What to say of columns that are not used and seem to name what belongs together, such as patients."""
    for name in unused:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        sizes = Counter(table.column(name))
        repeats = len(sizes) < len(table.rows) and len(sizes) > 1
        if repeats and any(word.rstrip("s") in _GROUP_WORDS or word in _GROUP_WORDS for word in words):
            yield (
                f"images of one {name} may end up in several splits, which makes results too good; "
                f"to keep each together: --group-column {name}"
            )
