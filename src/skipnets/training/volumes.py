"""Runs on signals and volumes: what their options are, and which are of images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from skipnets.axes import INPUTS, SIDES
from skipnets.data.volume_augmentation import AUGMENTATIONS_OF
from skipnets.data.volumes import VolumeDataset
from skipnets.errors import UserError, near_matches
from skipnets.training.config import Augmentation, TrainConfig
from skipnets.training.mirroring import keeps_class_mirrored

__all__ = ["with_volume_options"]

# Option → what it is where nothing is done.
_OF_IMAGES: Mapping[str, Any] = {
    "erasing": 0.0,
    "voi": False,
    "shown_channels": (1, 2, 3),
    "whiten_stem": False,
}


def with_volume_options(config: TrainConfig, train: VolumeDataset) -> TrainConfig:
    """The configuration of a run on signals or volumes, with what the data decide filled in.

    Volumes are resized along each axis and lightly augmented; signals keep their rate, so they are cut or
    padded, and are not augmented.

    Args:
        config: As the user gave it.
        train: The signals or volumes to train on.

    Raises:
        UserError: If an option is of images alone, or contradicts the data.
    """
    kind = INPUTS[train.dims]
    off = _OF_IMAGES if train.dims == 3 else {**_OF_IMAGES, "mixup": 0.0, "cutmix": 0.0}
    for name, nothing in off.items():
        if (value := getattr(config, name)) not in (None, nothing):
            raise UserError(f"{name}={value}: must be left out with {kind}; it is for images")
    known = AUGMENTATIONS_OF[train.dims]
    if config.augmentation is not None and config.augmentation not in known:
        near = near_matches(config.augmentation, known)
        raise UserError(
            f"augmentation={config.augmentation!r}: must be one of {', '.join(known)} for {kind}{near}"
        )
    if config.channels not in (None, train.channels):
        raise UserError(
            f"channels={config.channels}: must be left out or {train.channels}, as the {kind} are"
        )
    return dataclasses.replace(
        config,
        size=_size(config, train),
        channels=train.channels,
        fit=config.fit or ("center" if train.dims == 1 else "stretch"),
        augmentation=config.augmentation or _augmentation(train),
        **off,
    )


def _size(config: TrainConfig, train: VolumeDataset) -> tuple[int, ...]:
    """The sides of the input: those that are given, or what suits the data, which is said."""
    if isinstance(config.size, int):
        return (config.size,) * train.dims
    if config.size is not None:
        if len(config.size) != train.dims:
            given = " ".join(map(str, config.size))
            raise UserError(f"size={given}: must be one number, or {SIDES[train.dims]}")
        return config.size
    size = train.sides
    if any(header.sides != size for header in train.some_volume_headers):
        train.listing.notes.append(
            f"size: {'×'.join(map(str, size))} by the {INPUTS[train.dims]}, which differ or are larger; "
            f"--size sets another ({SIDES[train.dims]})"
        )
    return size


def _augmentation(train: VolumeDataset) -> Augmentation:
    if train.dims == 1:
        return "none"
    return "shift-flip" if keeps_class_mirrored(train) else "shift"
