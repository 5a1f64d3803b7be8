"""`skipnets reuse`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

FAMILIES = ("densenet", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_is_drawn_with_its_numbers(family: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    assert run("reuse", runs[family], "--output", tmp_path / "r.png").status == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = "share" if family == "resnet" else "relative"
    assert len(rows) == (2 if family == "resnet" else 2 * 3)
    assert all(0 <= float(row[column]) <= 1 for row in rows)
