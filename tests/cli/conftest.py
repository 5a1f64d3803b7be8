"""A trained run and images for the commands to work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.commands import QUICK, Result, write_image

from skipnets.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call `skipnets` with these words, in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty dark and twenty bright images in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(20):
        write_image(root / "dark" / f"{index:02}.png", 10, index)
        write_image(root / "bright side" / f"{index:02}.png", 180, 100 + index)
    return root


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained by the command itself."""
    out = tmp_path_factory.mktemp("runs") / "light"
    assert main([str(word) for word in ["train", photos, "--out", out, *QUICK]]) == 0
    return out
