"""A run on data that were named to break a page."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.helpers.runs import HOSTILE_CLASSES, HOSTILE_FILE, make_run, write_images

from skipnets.training.run import Run


@pytest.fixture(scope="session")
def hostile_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten images, named to break a page; some that cannot be read, one not in UTF-8."""
    names = tuple(f"{index}{HOSTILE_FILE}" for index in range(10))
    root = write_images(tmp_path_factory.mktemp("data") / "pets", HOSTILE_CLASSES, 10, names)
    for label in HOSTILE_CLASSES:
        for index in range(4):
            (root / label / f"broken<b>{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    if sys.platform == "linux":
        for name in names[:4]:
            source = root / HOSTILE_CLASSES[0] / name
            Path(os.fsdecode(os.fsencode(source)[:-4] + b"\xff.png")).write_bytes(source.read_bytes())
    return root


@pytest.fixture(scope="session")
def hostile_run(hostile_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs") / "hostile", hostile_data)
