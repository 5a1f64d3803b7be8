"""Runs on signals and volumes: which options are of images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from skipnets.data.volumes import VolumeDataset
from skipnets.errors import UserError
from skipnets.models.registry import INPUTS
from skipnets.training.config import TrainConfig

__all__ = ["without_image_options"]

# Option → what it is where nothing is done.
_OF_IMAGES: Mapping[str, Any] = {
    "fit": "pad",
    "crop_fraction": 1.0,
    "interpolation": "bilinear",
    "augmentation": "none",
    "erasing": 0.0,
    "percentiles": None,
    "voi": False,
    "shown_channels": (1, 2, 3),
    "whiten_stem": False,
    "teacher": None,
}


def without_image_options(config: TrainConfig, train: VolumeDataset) -> TrainConfig:
    """The configuration of a run on signals or volumes, which are neither resized nor augmented.

    Args:
        config: As the user gave it.
        train: The signals or volumes to train on.

    Raises:
        UserError: If an option is of images alone, or contradicts the data.
    """
    kind = INPUTS[train.dims]
    # torchvision mixes images and volumes.
    off = _OF_IMAGES if train.dims == 3 else {**_OF_IMAGES, "mixup": 0.0, "cutmix": 0.0}
    for name, nothing in off.items():
        if (value := getattr(config, name)) not in (None, nothing):
            raise UserError(f"{name}={value}: is of images; it must be left out with {kind}")
    size = (config.size,) if isinstance(config.size, int) else config.size
    for name, value, found in (("size", size, train.sides), ("channels", config.channels, train.channels)):
        if value not in (None, found):
            raise UserError(f"{name}={value}: must be left out or {found}, as the {kind} are")
    return dataclasses.replace(config, size=train.sides, channels=train.channels, **off)
