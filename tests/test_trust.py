from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.helpers.own_networks import TinyNet

from skipnets.errors import UserError
from skipnets.trust import MissingNetworkError, import_trusted, is_import, trusting

TINY = "tests.helpers.own_networks:TinyNet"


@pytest.mark.parametrize("name", ["a:B", "a.b_c:D.e", "_a1:_b"])
def test_an_import_is_a_module_and_a_name_in_it(name: str) -> None:
    assert is_import(name)


@pytest.mark.parametrize("name", ["a", "a:", ":b", "a:b c", "a b:c", "a:b()", "a:b;import os", "", None, 3])
def test_anything_else_is_none(name: object) -> None:
    assert not is_import(name)


def test_only_what_is_named_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_imported.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingNetworkError, match=r"its network is never_imported:Net, .*\(--trust never"):
        import_trusted("never_imported:Net")
    with trusting(TINY), pytest.raises(MissingNetworkError, match=r"which tests.helpers.* is not"):
        import_trusted("never_imported:Net")
    assert not (tmp_path / "ran").exists()
    with trusting([TINY]):
        assert import_trusted(TINY) is TinyNet
    with pytest.raises(MissingNetworkError):  # trust ends with the block
        import_trusted(TINY)


def test_modules_in_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module_here.py").write_text("class Net: ...\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    with trusting("own_module_here:Net"):
        assert import_trusted("own_module_here:Net").__name__ == "Net"
    assert sys.path == path


def test_folders_that_a_module_appends_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appends_a_folder.py").write_text("import sys\nsys.path.append('/its/own')\nclass Net: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    with trusting("appends_a_folder:Net"):
        import_trusted("appends_a_folder:Net")
    assert sys.path is before
    assert sys.path[-1] == "/its/own"
    assert str(tmp_path) not in sys.path


def test_errors_are_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"trust='os.system': must be an import such as"),
        trusting("os.system"),
    ):
        pass
    with (
        trusting("no_such_module_x:Net"),
        pytest.raises(UserError, match=r"trust=no_such.*: cannot be imported"),
    ):
        import_trusted("no_such_module_x:Net")
    with (
        trusting("os:name"),
        pytest.raises(UserError, match="trust=os:name: must be a class or function, not"),
    ):
        import_trusted("os:name")
    with trusting("os:no_such"), pytest.raises(UserError, match="trust=os:no_such: cannot be imported"):
        import_trusted("os:no_such")
