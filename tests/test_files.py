"""Whatever happens while a file is written, its name never stands for half of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.files import atomic_path


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


def test_errors_about_other_files_are_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), atomic_path(tmp_path / "a.csv"):
        (tmp_path / "other").read_text()
