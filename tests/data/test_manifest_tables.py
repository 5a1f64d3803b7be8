"""Tables of whatever program, whose cells are read as they were meant."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from tests.helpers.folders import found, image_bytes, plant
from tests.helpers.manifests import FOUR, ROWS, Case, check_manifest, opened, table, write_manifest

from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset

CASES = {
    "semicolons": Case("m.csv", table("image;target", separator=";"), FOUR),
    "tabs": Case("m.tsv", table("filename\tlabel", separator="\t"), FOUR),
    "tabs in a .csv": Case("m.csv", table("filename\tlabel", separator="\t"), FOUR),
    "byte order mark": Case("m.csv", table("path,label").encode("utf-8-sig"), FOUR),
    "UTF-16": Case("m.csv", table("path;label", separator=";").encode("utf-16"), FOUR),
    "Windows-1252": Case(
        "m.csv",
        table("path,label").replace("dog", "köter").encode("cp1252"),
        "test: cat 2, köter 2",
        ("m.csv is not UTF-8; read as Windows-1252",),
    ),
    "Windows line ends": Case("m.csv", table("path,label").replace("\n", "\r\n"), FOUR),
    "quotes": Case(
        "m.csv", table("path,label").replace("dog", '"dog, ""big"""'), 'test: cat 2, dog, "big" 2'
    ),
    "no header": Case("m.csv", table(""), FOUR, ("m.csv has no header",)),
    "a list": Case("m.txt", table("", separator=" "), FOUR, ("no header",)),
    "JSON lines": Case(
        "m.jsonl", "\n".join(f'{{"image": "{name}", "label": "{label}"}}' for name, label in ROWS), FOUR
    ),
    "JSON lines with other line breaks": Case(
        "m.jsonl",
        "\r\n".join(
            f'{{"image": "{name}", "label": "{label}", "text": "\u2028 \x85"}}' for name, label in ROWS
        ),
        FOUR,
        ("columns that are not used: text",),
    ),
    "a short row": Case("m.csv", "path,label\na.png\n", "error: line 2: has 1 value, not 2"),
    "no JSON": Case("m.jsonl", "a.png cat\n", "error: line 1: not JSON"),
    "no objects": Case("m.jsonl", "[1]\n", "error: line 1: must be an object"),
    "no text": Case("m.csv", b"\xff\0\0", "error: not a text file"),
    "no Parquet": Case("m.parquet", b"PAR", "error: not a Parquet file"),
    "nothing": Case("m.csv", "", "error: lists no images"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_table(tmp_path, case):
    check_manifest(tmp_path, case)


def test_parquet(tmp_path):
    plant(tmp_path, {name: image_bytes() for name, _ in ROWS})
    columns = {"image": [name for name, _ in ROWS], "label": [1.0, 1.0, 2.0, 2.0], "patient": [7, 7, 8, 8]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    dataset = find_dataset(
        tmp_path / "m.parquet", fractions=None, options=DataOptions(group_column="patient")
    )
    assert found(dataset) == "test: 1 2, 2 2"
    assert dataset.groups.tolist() == ["7", "7", "8", "8"]


def test_names_of_columns_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, ["path", "'=1+1", "B"], [["a.png", "1", "0"], ["b.png", "0", "1"]])
    assert opened(path).classes == ("=1+1", "B")
