"""How commands print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skipnets.cli.output import (
    check_outputs,
    print_failures,
    print_json,
    print_paths,
    print_tables,
    progress,
)
from skipnets.errors import UserError
from skipnets.tables import properties_table


def test_json_is_one_document_that_people_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"label": "größer", "shares": [0.1, 1e-300, None]}
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert "größer" in out
    assert out.endswith("}\n")


def test_nothing_is_cut_off_where_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["folder"] * 40)
    print_tables([properties_table({"run": path, "model": "densenet121"})])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["run", path],
        ["model", "densenet121"],
    ]


def test_failures_are_counted_and_each_name_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_failures({"a.png": "a.png: not an image", "b.png": "cut short"}, of=7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "2 of 7 images failed:\n  a.png: not an image\n  b.png: cut short\n"


def test_a_folder_is_written_to_though_its_parent_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "mounted"
    inside.mkdir()
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != tmp_path)
    check_outputs(inside, None, folder=inside)
    check_outputs(inside / "a.csv")
    with pytest.raises(UserError, match=r"a\.csv cannot be written: no permission to write to "):
        check_outputs(tmp_path / "a.csv")


def test_no_bar_is_drawn_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("counting") as report:
        report(1, 3)
        report(2)
        report(3, 3, "done")
    assert capsys.readouterr() == ("", "")


def test_long_work_says_in_a_log_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with caplog.at_level("INFO", "skipnets"), progress("counting") as report:
        report(20, 30)
    assert caplog.messages == ["counting: 20 of 30, 4/s"]


def test_written_files_are_results(capsys: pytest.CaptureFixture[str]) -> None:
    print_paths(Path("a.png"), None, Path("b"))
    assert capsys.readouterr() == ("a.png\nb\n", "")


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_failures({"a\x1b[31m.png": "b\nc"}, of=1)
    assert capsys.readouterr().err.splitlines()[1:] == ["  a\\x1b[31m.png: b\\nc"]
