"""A trained run and images for the commands to work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from skipnets.cli import main


class Result(NamedTuple):
    """What a command gave: its exit status and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call `skipnets` with these words, in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Result(status, *capsys.readouterr())

    return call


def write_image(path: Path, brightness: int, seed: int = 0) -> None:
    """A noisy 16×16 PNG about that bright."""
    noise = np.random.default_rng(seed).integers(0, 60, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((brightness + noise).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty dark and twenty bright images in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(20):
        write_image(root / "dark" / f"{index:02}.png", 10, index)
        write_image(root / "bright side" / f"{index:02}.png", 180, 100 + index)
    return root


TINY = [
    "--model",
    "densenet_bc40_k12",
    "--model-options.block-config",
    "[1,1]",
    "--model-options.growth-rate",
    4,
]
QUICK = [*TINY, "--epochs", 4, "--batch-size", 8, "--ema", 0, "--workers", 0, "--augmentation", "flip"]


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained by the command itself."""
    out = tmp_path_factory.mktemp("runs") / "light"
    assert main([str(word) for word in ["train", photos, "--out", out, *QUICK]]) == 0
    return out
