"""Tables as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from skipnets.errors import UserError
from skipnets.evaluation import write_table

COLUMNS = {
    "path": ["a,b.png", 'say "x".png', "Käfer\n.png"],
    "probability": np.array([0.1, 0.25, 1.0], np.float32),
    "count": [1, 2, None],
}


def test_parquet(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", COLUMNS)
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.schema.names == list(COLUMNS)
    assert [str(kind) for kind in table.schema.types] == ["string", "float", "int64"]
    assert table["path"].to_pylist() == COLUMNS["path"]
    assert table["count"].to_pylist() == COLUMNS["count"]


def test_csv(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", COLUMNS)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(COLUMNS)
    assert [row[0] for row in rows[1:]] == COLUMNS["path"]
    assert [row[1:] for row in rows[1:]] == [["0.1", "1"], ["0.25", "2"], ["1.0", ""]]


def test_a_name_of_a_column_is_no_formula(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"path": ["a.png"], '=HYPERLINK("x")': ["1"], "=1+1": ["@x"]})
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["path", '\'=HYPERLINK("x")', "'=1+1"], ["a.png", "1", "'@x"]]


def test_json_lines(tmp_path: Path) -> None:
    write_table(tmp_path / "t.jsonl", COLUMNS)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text("utf-8").splitlines()]
    assert [row["path"] for row in rows] == COLUMNS["path"]
    assert rows[2] == {"path": "Käfer\n.png", "probability": 1.0, "count": None}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_no_rows_and_odd_names(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"empty.{suffix}", {"path": [], "p": np.zeros(0, np.float32)})
    write_table(tmp_path / f"odd.{suffix}", {"path": [b"caf\xe9.png".decode(errors="surrogateescape")]})
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_table(tmp_path / "t.csv", {"a": [1, 2], "b": [1]})
    with pytest.raises(UserError, match=r"^path=.*t\.xlsx: must end in \.parquet, \.csv or \.jsonl"):
        write_table(tmp_path / "t.xlsx", COLUMNS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_table(tmp_path / "file" / "t.csv", COLUMNS)
