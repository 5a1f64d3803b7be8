"""How signals and volumes are varied in training, drawn from PyTorch's global generator.

Which are mirrored is given: `skipnets.data.loading` decides that for all passes.

N batch, C channels, L length, D depth, H height, W width; channels are last, values run from 0 to 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipnets.data.augmentation import Augmentation

__all__ = ["AUGMENTATIONS_OF", "shift_and_mirror_volumes"]

# Spatial axes → the names of `skipnets.data.augmentation` that there are. A signal backwards is another one.
AUGMENTATIONS_OF = {
    1: ("none", "crop", "shift"),
    3: ("none", "flip", "crop", "crop-flip", "shift", "shift-flip"),
}
# An axis is shifted by an eighth of its length at most, and a signal by so much.
_PART = 8


def shift_and_mirror_volumes(
    volumes: NDArray[Any], augmentation: Augmentation, mirrored: NDArray[np.bool_]
) -> NDArray[Any]:
    """Padded random crops, each by its own draw, then mirroring of left and right: a new (N, …, C).

    Volumes are shifted by as many voxels as images are by pixels, but by an eighth of an axis at most;
    signals by up to an eighth of their length.

    Args:
        volumes: (N, L, C) or (N, D, H, W, C).
        augmentation: Its `padding`, `reflect` and `mirror` count.
        mirrored: (N,) which are mirrored if any are.
    """
    if not (augmentation.padding or augmentation.mirror):
        return volumes
    count, *sides, _ = volumes.shape
    most = [side // _PART for side in sides]
    if len(sides) > 1:
        most = [min(augmentation.padding, part) for part in most]
    elif not augmentation.padding:
        most = [0]
    offsets = torch.stack([torch.randint(2 * part + 1, (count,)) for part in most], dim=1).tolist()
    mirrored = mirrored & augmentation.mirror
    changed = np.empty_like(volumes)
    for result, volume, starts, mirror in zip(changed, volumes, offsets, mirrored, strict=True):
        widths = [*((part, part) for part in most), (0, 0)]
        canvas = np.pad(volume, widths, mode="reflect") if augmentation.reflect else np.pad(volume, widths)
        seen = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        window = canvas[seen]
        result[...] = window[..., ::-1, :] if mirror else window
    return changed
