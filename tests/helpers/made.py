"""Images made of noise with labels of any task, and a configuration to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.dataset import ImageDataset
from skipnets.training import TrainConfig


def made_dataset(task: str) -> ImageDataset:
    """20 images for training and 12 for validation; of labels and numbers, two are not known."""
    generator = np.random.default_rng(0)
    if task == "single-label":
        labels: NDArray[Any] = np.arange(32) % 3 % 2
    elif task == "multi-label":
        labels = generator.integers(0, 2, (32, 2)).astype(np.float32)
    else:
        labels = generator.normal(5, 2, (32, 2))
    if labels.ndim == 2:
        labels[3, 0] = labels[9, 1] = np.nan
    return ImageDataset(
        classes=("a", "b"),
        names=[f"{index:02}" for index in range(32)],
        labels=labels,
        splits=np.array(["train"] * 20 + ["val"] * 12),
        images=generator.integers(0, 256, (32, 8, 8), dtype=np.uint8),
        regression=task == "regression",
    )


def made_config(folder: Path, **changes: Any) -> TrainConfig:
    """A run of one epoch of the smallest network, with all choices made."""
    return TrainConfig(
        data="made",
        out=folder,
        model="resnet8_w16",
        model_options={"width": 4},
        epochs=1,
        batch_size=8,
        block_execution="plain",
        channels_last=False,
        operators={},
        augmentation="none",
        workers=0,
        accelerator="cpu",
        whiten_stem=False,
        recipe="scratch",
        ema=0.0,
        **changes,
    )
