"""`skipnets search`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import skipnets


def test_results_are_lines_json_sheets_and_tables(trained: Path, photos: Path, tmp_path: Path, run) -> None:
    query = photos / "dark/03.png"
    words = ("search", trained, photos, query, "--count", 4)
    lines = [line.split("\t") for line in run(*words).out.splitlines()]
    found = skipnets.insight.search(trained, photos, query=query, count=4)
    assert lines == [[str(query), each.source, f"{each.similarity:.4f}"] for each in found.neighbors[0]]
    assert all("/dark/" in each.source for each in found.neighbors[0])
    assert str(query) not in str(found.neighbors)
    answer = json.loads(run(*words, "--json").out)
    assert answer["images"] == 40
    assert [each["source"] for each in answer["queries"][0]["neighbors"]] == [line[1] for line in lines]
    for name in ("sheet.png", "sheet.html", "found.csv"):
        assert run(*words, "--output", tmp_path / name).out == f"{tmp_path / name}\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 5 * 256
    page = (tmp_path / "sheet.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 5
    assert "http" not in page.replace("http-equiv", "")
    assert [f"dark/{Path(line[1]).name}<" in page for line in lines] == [True] * 4  # with the class's folder
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [line[1] for line in lines]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]


def test_an_image_that_cannot_be_read_is_listed(trained: Path, photos: Path, tmp_path: Path, run) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.open(photos / "dark/00.png").save(tmp_path / "whole.png")
    result = run("search", trained, tmp_path, photos / "dark/00.png")
    assert result.status == 1
    assert "1 of 2 images failed" in result.err
    assert "whole.png\t1.0000" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "skipnets: --count=0: must be at least 1"),
        (
            ["--output", "a.jpg"],
            "skipnets: --output=a.jpg: must end in .png, .html, .csv, .jsonl or .parquet",
        ),
        (["--index", "a.npz"], "skipnets: --index=a.npz: must end in .safetensors"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, trained: Path, photos: Path, run) -> None:
    result = run("search", trained, photos, photos / "dark/00.png", *words)
    assert (result.status, result.err) == (2, f"{message}\n")


def test_a_query_that_is_missing_is_called_so(trained: Path, photos: Path, run) -> None:
    result = run("search", trained, photos, "no.jpg")
    assert result.err == "skipnets: QUERY: no.jpg does not exist (and no file matches it as a pattern)\n"


def test_an_export_is_searched_without_torch_and_matplotlib(exports, tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (20, 16), (80 * index, 0, 0)).save(tmp_path / f"{index}.png")
    script = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = sys.modules['pyarrow'] = None; "
        "from skipnets.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [exports["onnx"].path, tmp_path, tmp_path / "1.png", "--output", tmp_path / "sheet.png"]
    done = subprocess.run(
        [sys.executable, "-c", script, "search", *map(str, words)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "sheet.png").is_file()
