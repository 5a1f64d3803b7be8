"""Reading a table of images and labels: CSV and similar formats, JSON lines, Parquet, plain lists.

Columns are recognized by their names where these leave no doubt. What was recognized is said, and so is every
column that is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skipnets.data.layout import is_excluded, spelled
from skipnets.data.listing import Entry, Listing, counted
from skipnets.data.manifest_columns import Columns, find_roles, nearly_marked, possible_groups, usual_names
from skipnets.data.manifest_files import find_files
from skipnets.data.manifest_labels import read_labels
from skipnets.data.manifest_tables import Table, read_table
from skipnets.data.multi_label import SEPARATORS, Uncertain
from skipnets.data.options import Task
from skipnets.data.split_names import split_named
from skipnets.errors import UserError, listed

__all__ = ["find_listed", "find_metadata"]

# A table of these names in a folder describes its images (the "imagefolder" of Hugging Face's datasets).
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_listed(
    path: Path,
    *,
    columns: Columns,
    root: Path | None = None,
    exclude: Sequence[str] = (),
    missing: str = "error",
    task: Task = "auto",
    uncertain: Uncertain = "ignore",
) -> Listing:
    """Find the images that a manifest lists.

    Args:
        path: A .csv, .tsv, .txt, .jsonl, .ndjson or .parquet file.
        columns: Which columns hold what.
        root: What relative paths start from. Default: the manifest's folder.
        exclude: Patterns of folders and files to leave out.
        missing: "error", or "skip" for going on without files that are not there.
        task: Whether images have one label, several or numbers; "auto" decides by the columns.
        uncertain: How -1 in a label's own column is treated.

    Raises:
        UserError: The columns cannot be recognized, a row is wrong, or a file is missing.
    """
    table = read_table(path)
    root = path.parent if root is None else root
    if not table.rows:
        raise UserError(f"{path}: lists no images")
    if columns.targets:
        task = "regression"
    roles = find_roles(table, columns, root=root, task=task, uncertain=uncertain)
    listing = Listing(layout="manifest", root=root, notes=table.notes)
    listing.columns = dict.fromkeys(table.names, "") | {name: role for role, name in roles.used.items()}
    listing.columns |= dict.fromkeys(roles.labels, "target" if task == "regression" else "label")
    labels = read_labels(table, roles, listing, task=task, uncertain=uncertain)
    if roles.labels and not (columns.labels or listing.regression):
        listing.warnings += nearly_marked(table, roles)
    rows = _entries(table, roles.used, labels, several=listing.multi_label or listing.regression)
    names = find_files(path, [row.name for row in rows], root, listing, missing)
    there = [row._replace(name=name) for row, name in zip(rows, names, strict=True) if name]
    wanted = [entry for entry in there if not is_excluded(entry.name, exclude)]
    if len(wanted) < len(there):
        listing.passed_over["excluded"] += len(there) - len(wanted)
    listing.entries = _without_repetitions(path, wanted, listing)
    if not listing.entries:
        raise UserError(f"{path}: lists no images {'but excluded ones' if there else 'that are there'}")
    unused = [name for name in table.names if not listing.columns[name] and name]
    if unused:
        listing.notes.append(f"columns that are not used: {listed(unused, 20)}")
    if "group" not in roles.used:
        listing.warnings += possible_groups(table, unused)
    return listing


def _entries(table: Table, used: Mapping[str, str], labels: Sequence[str], *, several: bool) -> list[Entry]:
    """The rows as entries, with the paths as they are written.

    Args:
        table: Its cells.
        used: Which columns hold what.
        labels: Of each row.
        several: Whether a row may have any number of labels, also none.
    """
    cells = {role: table.column(name) for role, name in used.items()}
    for role in ("path", "group") if several else ("path", "label", "group"):
        empty = [
            line for line, cell in zip(table.lines, cells.get(role, ()), strict=False) if not cell.strip()
        ]
        if empty:
            any_number = role == "label" and any(each in cell for cell in cells[role] for each in SEPARATORS)
            raise UserError(
                f"{table.path}, line {empty[0]}: {used[role]} is empty, as in {counted(len(empty), 'row')}; "
                f"every image needs one{', unless it has any number: --task multi-label' * any_number}"
            )
    splits = [""] * len(table.rows)
    if "split" in cells:
        names = {value: split_named(value.strip()) for value in set(cells["split"])}
        for line, value in zip(table.lines, cells["split"], strict=True):
            if names[value] is None:
                raise UserError(
                    f"{table.path}, line {line}: {used['split']}={value!r}: must name one of train, val, test"
                )
        splits = [names[value] or "" for value in cells["split"]]
    groups = cells.get("group", [""] * len(table.rows))
    return [
        Entry(name.strip(), label if several else spelled(label), split, group.strip())
        for name, label, split, group in zip(cells["path"], labels, splits, groups, strict=True)
    ]


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


def find_metadata(folder: Path, *, any_label: bool = False) -> Path | None:
    """The table in a folder that describes its images, if it names files and labels.

    Args:
        folder: The folder.
        any_label: Whether a table counts whose columns of labels have names of their own.
    """
    for name in _METADATA_FILES:
        path = folder / name
        if not path.is_file() or not usual_names(names := read_table(path).names, "path"):
            continue
        if any_label or usual_names(names, "label"):
            return path
    return None
