"""`skipnets data`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.commands import write_image


def test_what_a_folder_holds(photos: Path, run) -> None:
    shown = run("data", photos)
    assert shown.status == 0
    for expected in ("bright side", "dark", "16"):
        assert expected in shown.out
    about = json.loads(run("data", photos, "--json", "--fractions", 0.5, 0.25, 0.25).out)
    assert about["images"] == 40
    assert about["splits"] == {"train": 20, "val": 10, "test": 10}
    assert [each["name"] for each in about["classes"]] == ["bright side", "dark"]
    assert about["width"] == [16, 16]


def test_what_cannot_be_read_is_listed_and_is_status_1(tmp_path: Path, run) -> None:
    for label in ("a", "b"):
        for index in range(6):
            write_image(tmp_path / label / f"{index}.png", 10, index)
    (tmp_path / "a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run("data", tmp_path)
    assert result.status == 1
    assert "broken.png" in result.out
    assert json.loads(run("data", tmp_path, "--json").out)["unreadable"]


def test_wrong_options_are_one_line(photos: Path, run) -> None:
    for words, said in (
        (["nowhere"], "nowhere"),
        ([photos, "--layout", "flat"], "flat"),
        ([photos, "--group-column", "patient"], "manifest"),
    ):
        result = run("data", *words)
        assert (result.status, result.out) == (2, "")
        assert said in result.err
        assert result.err.count("\n") == 1
