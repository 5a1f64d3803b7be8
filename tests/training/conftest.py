from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from skipnets.training import TrainConfig


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real scans of 0, 1 and 2, forty each, as a folder of PNG files: 84 train, 18 validate, 18 test."""
    root = tmp_path_factory.mktemp("data") / "digits012"
    images, labels = load_digits(return_X_y=True)
    for digit in range(3):
        (root / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(images[labels == digit][:40]):
            image = Image.fromarray((pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
            image.save(root / str(digit) / f"{number:02d}.png")
    return root


@pytest.fixture
def tiny(digits_folder: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes configurations of a run that takes a second."""

    def make(**changes: Any) -> TrainConfig:
        fields = {
            "data": digits_folder,
            "out": tmp_path / "run",
            "model": "densenet_bc40_k12",
            "model_options": {"block_config": [2, 2], "growth_rate": 4},
            "epochs": 3,
            "batch_size": 16,
            "augmentation": "none",
            "workers": 0,
            "accelerator": "cpu",
        }
        return TrainConfig(**(fields | changes))

    return make
