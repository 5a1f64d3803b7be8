"""Signals and volumes, shifted and mirrored."""

from __future__ import annotations

import numpy as np
import torch

from skipnets.data.augmentation import AUGMENTATIONS, Augmentation
from skipnets.data.volume_augmentation import AUGMENTATIONS_OF, shift_and_mirror_volumes


def test_every_volume_is_one_of_the_shifts_and_all_occur() -> None:
    volume = np.random.default_rng(0).uniform(0, 255, (8, 8, 16, 1)).astype(np.float32)
    batch = np.repeat(volume[None], 1000, axis=0)
    for reflect in (False, True):
        torch.manual_seed(0)
        augmentation = Augmentation(padding=2, reflect=reflect, mirror=True)
        found = shift_and_mirror_volumes(batch, augmentation, np.arange(1000) % 2 == 0)
        padded = np.pad(volume, ((1, 1), (1, 1), (2, 2), (0, 0)), mode="reflect" if reflect else "constant")
        expected = {
            padded[z : z + 8, y : y + 8, x : x + 16][:, :, ::step].tobytes()
            for z in range(3)
            for y in range(3)
            for x in range(5)
            for step in (1, -1)
        }
        assert {each.tobytes() for each in found} == expected


def test_signals_are_shifted_by_an_eighth_and_stay_forwards() -> None:
    signal = np.arange(1, 17, dtype=np.float32)[:, None]
    batch = np.repeat(signal[None], 200, 0)
    found = shift_and_mirror_volumes(batch, AUGMENTATIONS["crop"], np.ones(200, bool))
    assert {tuple(each[:, 0]) for each in found} == {
        tuple(np.pad(signal[:, 0], 2)[start : start + 16]) for start in range(5)
    }
    assert all(not AUGMENTATIONS[name].mirror for name in AUGMENTATIONS_OF[1])


def test_nothing_is_nothing() -> None:
    batch = np.ones((2, 4, 1), np.float32)
    assert shift_and_mirror_volumes(batch, Augmentation(), np.ones(2, bool)) is batch
    assert all(not AUGMENTATIONS[name].resized_crop for names in AUGMENTATIONS_OF.values() for name in names)
