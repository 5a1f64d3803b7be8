"""Whatever happens while a file is written, its name never stands for half of one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skipnets import files
from skipnets.errors import UserError
from skipnets.files import atomic_path, check_can_write, force_to_disk, is_temporary, remove_orphans


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("first")
        assert not target.exists()
        assert (temporary.parent, temporary.suffix) == (target.parent, ".csv")
    with atomic_path(target) as temporary:
        temporary.write_text("second")
        assert target.read_text() == "first"
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def write(target: Path, *, as_folder: bool, then: type[Exception] | None = None) -> None:
    with atomic_path(target) as temporary:
        if as_folder:
            temporary.mkdir()
            (temporary / "inside").write_text("new")
        else:
            temporary.write_text("new")
        if then is not None:
            raise then


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_failure_leaves_everything_as_it_was(as_folder: bool, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write(target, as_folder=as_folder, then=ZeroDivisionError)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "old"


def test_a_folder_takes_a_free_name_only(tmp_path: Path) -> None:
    write(tmp_path / "a", as_folder=True)
    (tmp_path / "a/inside").write_text("old")
    with pytest.raises(UserError, match="a cannot be written"):
        write(tmp_path / "a", as_folder=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a/inside").read_text() == "old"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.csv cannot be written"):
        write(tmp_path / "file/a.csv", as_folder=False)
    with pytest.raises(UserError, match=r"a\.csv cannot be written"), atomic_path(tmp_path / "a.csv"):
        pass  # nothing was written, so nothing can be renamed


def test_a_place_is_checked_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    check_can_write(tmp_path / "file")
    check_can_write(tmp_path / "a/b/c.csv")
    check_can_write(tmp_path / "a", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path, folder in (("file", True), ("file/a.csv", False), ("file/a/b", True)):
        with pytest.raises(UserError, match=r"cannot be written: .*file is not a folder$"):
            check_can_write(tmp_path / path, folder=folder)
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        check_can_write(tmp_path / ("n" * 300))
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=r"a/b cannot be written: no permission to write to "):
        check_can_write(tmp_path / "a/b")


def test_errors_about_other_files_are_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), atomic_path(tmp_path / "a.csv"):
        (tmp_path / "other").read_text()


def test_file_and_folder_are_on_the_disk_before_and_after_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    opened, synced, replaced = os.open, os.fsync, Path.replace

    def watched_open(path: object, *arguments: object) -> int:
        descriptor = opened(path, *arguments)  # type: ignore[arg-type]
        names[descriptor] = Path(path).name  # type: ignore[arg-type]
        return descriptor

    def watched_fsync(descriptor: int) -> None:
        events.append(("fsync", names[descriptor]))
        synced(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append(("rename", self.name))
        return replaced(self, target)

    monkeypatch.setattr(os, "open", watched_open)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    with atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("text")
        events.append(("written", temporary.name))
    name = temporary.name
    assert events == [("written", name), ("fsync", name), ("rename", name), ("fsync", tmp_path.name)]
    events.clear()
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "inside").write_text("text")
    assert [("fsync", "inside"), ("fsync", temporary.name), ("rename", temporary.name)] == events[:3]


KILLED = """
import os, signal, sys
from skipnets.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "table.csv"
    subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    [orphan] = tmp_path.iterdir()
    assert is_temporary(orphan)
    (tmp_path / ".config").write_text("kept")
    running = tmp_path / f".other.{os.getpid()}-00112233.tmp.csv"
    running.write_text("written by a process that runs")
    foreign = [".folder.1a2b3c4d.tmp", ".notes.-1a2b3c4d.tmp", ".notes.\u0664-1a2b3c4d.tmp"]
    for name in foreign:  # of other programs
        (tmp_path / name).mkdir()

    remove_orphans(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # as long as another machine may be writing them
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 2 * 3600,) * 2)
    monkeypatch.setattr(files, "_looked_through", set())
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    kept = [".config", *foreign, "table.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, running.name])
    remove_orphans(tmp_path, in_use=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_orphans(tmp_path / "nowhere")


def test_what_is_not_there_cannot_be_forced_to_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        force_to_disk(tmp_path / "nothing")
