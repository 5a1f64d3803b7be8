"""Several labels an image: how tables write them, and how they are held.

A label of an image is present (1), absent (0) or unknown (NaN), so that the labels of a dataset are an array
(N, K). In tables of ours an image's labels are one text, such as "cat|dog|?bird": the present ones, and the
unknown ones behind a question mark; those that are absent are not listed.

Shapes: N images, K labels.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.data.listing import Entry, Listing
from skipnets.data.targets import as_number
from skipnets.errors import UserError, listed

__all__ = [
    "MISSING",
    "SEPARATORS",
    "Uncertain",
    "label_text",
    "label_texts",
    "labels_from_texts",
    "names_in_cell",
    "read_mark",
    "separator_of",
]

Uncertain = Literal["ignore", "positive", "negative"]
Labels = NDArray[np.float32]

SEPARATORS = ("|", ";", ",")
_NONE = "(none)"
_UNKNOWN = "?"
# How pandas, R and others write a missing value, in lower case; "none" is often a class.
MISSING = frozenset({"nan", "na", "<na>", "n/a", "#n/a", "null"})
_WORDS: Mapping[str, float] = {"true": 1.0, "false": 0.0, **dict.fromkeys(("", *MISSING), float("nan"))}
_UNCERTAIN: Mapping[Uncertain, float] = {"ignore": float("nan"), "positive": 1.0, "negative": 0.0}


def read_mark(cell: str, uncertain: Uncertain = "ignore") -> float | None:
    """What a cell of a label's own column says: 1 present, 0 absent, NaN unknown.

    Args:
        cell: 1, 0, true, false, -1 for uncertain; empty, or one of `MISSING`, for unknown.
        uncertain: How -1 is treated; "ignore" makes it unknown.

    Returns:
        None if the cell holds something else.
    """
    text = cell.strip().lower()
    if text in _WORDS:
        return _WORDS[text]
    mark = as_number(text)
    if mark == -1:
        return _UNCERTAIN[uncertain]
    return mark if mark in (0, 1) else None


def separator_of(cells: Sequence[str]) -> str:
    """What separates the names in a column's cells: the first of `SEPARATORS` that occurs, or else "|"."""
    plain = [cell for cell in cells if not _is_list(cell)]
    return next((each for each in SEPARATORS if any(each in cell for cell in plain)), SEPARATORS[0])


def names_in_cell(cell: str, separator: str) -> list[str]:
    """The names that a cell lists, as "cat|dog", or as a list in JSON or Python; none of an empty cell.

    Raises:
        UserError: If a list is none, or holds what is no name.
    """
    if _is_list(cell):
        names = _read_list(cell)
        if not all(isinstance(name, str | int) for name in names):
            raise UserError(f"{cell}: must be a list of names")
        names = list(map(str, names))
    else:
        names = cell.split(separator)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def label_text(row: NDArray[np.floating], classes: Sequence[str]) -> str:
    """The labels of an image as one text: "cat|dog|?bird", or "(none)".

    Args:
        row: (K,) with 1 for present, 0 for absent, NaN for unknown.
        classes: The K names.
    """
    present = [name for name, value in zip(classes, row.tolist(), strict=True) if value == 1]
    unknown = [_UNKNOWN + name for name, value in zip(classes, row.tolist(), strict=True) if value != value]
    return "|".join([*present, *unknown]) or _NONE


def label_texts(labels: Labels, classes: Sequence[str]) -> list[str]:
    """The labels of N images, each as one text."""
    return [label_text(row, classes) for row in labels]


def labels_from_texts(texts: Sequence[str], classes: Sequence[str]) -> Labels:
    """(N, K) labels from the texts that `label_text` writes.

    Raises:
        UserError: If a text names a label that is not in `classes`.
    """
    number = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(texts), len(classes)), np.float32)
    for row, text in zip(labels, texts, strict=True):
        for name in () if text in ("", _NONE) else text.split("|"):
            is_unknown = name.startswith(_UNKNOWN)
            index = number.get(name.removeprefix(_UNKNOWN))
            if index is None:
                raise UserError(f"{name}: no such label; there are {listed(classes, 20)}")
            row[index] = np.nan if is_unknown else 1
    return labels


def contradict(first: str, second: str) -> bool:
    """Whether two texts that `label_text` writes differ in a label that both know."""
    (one, unknown_of_one), (other, unknown_of_other) = map(_present_and_unknown, (first, second))
    return bool((one ^ other) - unknown_of_one - unknown_of_other)


def _present_and_unknown(text: str) -> tuple[set[str], set[str]]:
    names: set[str] = set() if text in ("", _NONE) else set(text.split("|"))
    unknown = {name for name in names if name.startswith(_UNKNOWN)}
    return names - unknown, {name.removeprefix(_UNKNOWN) for name in unknown}


def check_names(names: Sequence[str]) -> None:
    """Check that names can be told apart in such a text.

    Raises:
        UserError: If one holds a bar, or begins with a question mark or is the text for none.
    """
    for name in names:
        if "|" in name or name.startswith(_UNKNOWN) or name == _NONE:
            raise UserError(f'label {name!r}: must not hold "|", begin with "?" or be "{_NONE}"')


def absent_labels(
    labels: Labels, classes: Sequence[str], splits: NDArray[np.str_], *, dims: int = 2
) -> list[str]:
    """What to say of labels that no image of a split has, or all of which are known have.

    Args:
        labels: (N, K).
        classes: The K names.
        splits: (N,) the split of each image.
        dims: Spatial axes of the inputs, by which they are called.
    """
    noun = INPUTS[dims].removesuffix("s")
    found = []
    for split in np.unique(splits):
        of_split = labels[splits == split]
        for value, what in ((1, "present"), (0, "absent")):
            lacking = [
                name for name, any_is in zip(classes, (of_split == value).any(0), strict=True) if not any_is
            ]
            if lacking:
                use = "cannot be learned" if split == "train" else "has no AUROC there"
                found.append(
                    f"labels that are {what} in no {noun} of {split}, where each {use}: {listed(lacking, 20)}"
                )
    return found


def join_folders(listing: Listing) -> None:
    """Make one image with several labels of equal files in several class folders.

    Args:
        listing: Class folders. It is changed: an image has the labels of the folders that its content lies
            in, and no others.
    """
    check_names(sorted({entry.label for entry in listing.entries}))
    places: dict[tuple[str, bytes], list[Entry]] = {}
    for entry in sorted(listing.entries):
        places.setdefault((entry.split, _content(listing.root / entry.name)), []).append(entry)
    several = sum(len({entry.label for entry in same}) > 1 for same in places.values())
    listing.classes = sorted({*listing.classes, *(entry.label for entry in listing.entries)})
    listing.entries = [
        same[0]._replace(label="|".join(sorted({entry.label for entry in same}))) for same in places.values()
    ]
    listing.multi_label = True
    listing.layout += ", equal files joined"
    listing.notes.append(
        f"an image has the labels of all folders that hold it: {several:,} of {len(places):,} are in several"
    )
    if not several:
        listing.warnings.append("no file lies in several class folders, so every image has one label")


def _content(path: Path) -> bytes:
    """What equal files have in common; a file that cannot be read is told of where it is decoded."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return os.fsencode(path)


def _read_list(cell: str) -> list[Any]:
    # JSON first: its "\\ud83d\\ude00" is one character, in Python two halves.
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(cell.strip()))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise UserError(f"{cell}: must be a list of names")


def _is_list(cell: str) -> bool:
    """Whether a cell is a list, also one that was cut off: `["cat", "do`."""
    return re.match(r"\s*\[(.*\]\s*$|\s*[\"'])", cell, re.DOTALL) is not None
