"""What tests of the commands share: images, options of a short training, and how to call them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Result(NamedTuple):
    """What a command gave: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def write_image(path: Path, brightness: int, seed: int = 0) -> None:
    """A noisy 16×16 PNG about that bright."""
    noise = np.random.default_rng(seed).integers(0, 60, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((brightness + noise).astype(np.uint8)).save(path)


TINY: list[object] = [
    "--model",
    "densenet_bc40_k12",
    "--model-options.block-config",
    "[1,1]",
    "--model-options.growth-rate",
    4,
]
QUICK: list[object] = [
    *TINY,
    "--epochs",
    4,
    "--batch-size",
    8,
    "--ema",
    0,
    "--workers",
    0,
    "--augmentation",
    "flip",
]
