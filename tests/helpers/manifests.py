"""Manifests beside tiny images, and what became of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from skipnets.data import open_dataset
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError

from .folders import found, image_bytes, plant

# The images beside each manifest, as `found` shows them.
FOUR = "test: cat 2, dog 2"
ROWS = [("a.png", "cat"), ("b.png", "cat"), ("c.png", "dog"), ("d.png", "dog")]


def table(header: str, *more: str, separator: str = ",", prefix: str = "") -> str:
    """ROWS below a header, each with one of `more` behind."""
    lines = [separator.join((prefix + name, label, *more[i : i + 1])) for i, (name, label) in enumerate(ROWS)]
    return "\n".join([*([header] if header else []), *lines]) + "\n"


class Case(NamedTuple):
    """A manifest beside a.png to d.png and what is to come of it; as a pattern where it is an error."""

    name: str
    content: str | bytes
    expected: str
    said: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed


def check_manifest(folder: Path, case: Case) -> None:
    """Open the case's manifest, and check what became of it and what was said."""
    plant(folder, {"in": None, **{name: image_bytes() for name, _ in ROWS}})
    path = folder / case.name
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    options = DataOptions(**case.options)
    if case.expected.startswith("error: "):
        with pytest.raises(UserError, match=case.expected.removeprefix("error: ")) as caught:
            find_dataset(path, fractions=None, options=options)
        assert "\n" not in str(caught.value)
        return
    dataset = find_dataset(path, fractions=None, options=options)
    assert found(dataset) == case.expected
    lines = [*dataset.listing.notes, *dataset.listing.warnings]
    lines += [f"{count} {reason}" for reason, count in dataset.listing.passed_over.items()]
    for pattern in case.said:
        assert any(re.search(pattern, line) for line in lines), lines
    if not case.said:
        assert not lines
    assert {dataset.open(index).size for index in range(len(dataset))} == {(5, 6)}


def write_manifest(folder: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A manifest whose first column names images, which are made as well."""
    for index, row in enumerate(rows):
        Image.new("L", (4, 4), index % 256).save(folder / row[0])
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def opened(path: Path, **options: Any) -> ImageDataset:
    """All of a manifest's images, with these options of `DataOptions`."""
    return open_dataset(path, fractions=None, options=DataOptions(**options))


def write_groups(folder: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """A manifest of (label, split, patient) rows, an image each."""
    lines = ["path,label,split,patient"] if rows[0][1] else ["path,label,patient"]
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(image_bytes())
        lines.append(",".join([f"{number}.png", *filter(None, row)]))
    (folder / "m.csv").write_text("\n".join(lines))
