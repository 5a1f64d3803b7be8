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


RESNET = ["--model", "resnet20", "--model-options.block-config", "[1,1]", "--model-options.width", 8]


@pytest.fixture(scope="session")
def runs(trained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each family. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "residual"
    options = [*RESNET, *QUICK[QUICK.index("--epochs") :]]
    assert main([str(word) for word in ["train", photos, "--out", out, *options]]) == 0
    return {"densenet": trained, "resnet": out}


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright images, of which a third are in the wrong folder."""
    root = tmp_path_factory.mktemp("noisy")
    for index in range(60):
        is_dark = bool(index % 2) != (index % 3 == 0)
        write_image(root / ("a" if index % 2 else "b") / f"{index}.png", 10 if is_dark else 180, index)
    return root


@pytest.fixture(scope="session")
def unsure(noisy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on those. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "unsure"
    assert main([str(word) for word in ["train", noisy, "--out", out, *QUICK]]) == 0
    return out
