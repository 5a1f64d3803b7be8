"""One training at a time writes to a run folder, and a lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.training.locking import locked

HOLD = """
import os, sys, time
from pathlib import Path
from skipnets.training.locking import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2] == "and a child":
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no such locks here")
@pytest.mark.parametrize("how", ["alone", "and a child"])
def test_another_process_is_refused_until_the_first_is_dead(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = hold(folder, how)
    try:
        with (
            pytest.raises(UserError, match=rf"run is in use by another training \(process {process.pid} on "),
            locked(folder),
        ):
            pass
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with locked(folder):
            assert (folder / ".lock").exists()
        assert list(folder.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with (
            pytest.raises(UserError, match="in use by another training of this process"),
            locked(tmp_path / "run"),
        ):
            pass
        with locked(tmp_path / "other"):
            pass


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    with locked(tmp_path / "full"):
        (tmp_path / "full/file").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "old"]


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        (tmp_path / "run/.lock").unlink()
        (tmp_path / "run").rmdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file/run"):
        pass
