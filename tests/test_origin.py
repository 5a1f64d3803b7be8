"""A model that another process opens again is the one that was opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.origin import Origin


def opened(path: Path) -> Origin:
    return Origin.of(path, runtime="onnxruntime", device="cpu", threads=1)


def test_what_is_unchanged_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph/model.xml").write_text("x")
    monkeypatch.chdir(tmp_path)
    origin = opened(Path("graph"))
    monkeypatch.chdir("/")
    origin.check()


@pytest.mark.parametrize("change", ["size", "time", "removed"])
def test_what_changed_is_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("x")
    origin = opened(path)
    if change == "size":
        path.write_text("xy")
    elif change == "time":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"m\.onnx was replaced or removed"):
        origin.check()
