"""`skipnets report`."""

from __future__ import annotations

from pathlib import Path


def test_a_report_is_written_and_its_place_printed(trained: Path, tmp_path: Path, run) -> None:
    result = run("report", trained, "--output", tmp_path / "r.html", "--workers", 1)
    assert (result.status, result.out) == (0, f"{tmp_path / 'r.html'}\n")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert run("report", trained, "--output", tmp_path / "r.pdf").status == 2
