"""Whether mirroring an image leaves its class as it is, by the training images themselves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.volumes import VolumeDataset
from skipnets.training.reading import sample_size

_IMAGES, _VOLUMES, _SIDE = 1000, 200, 16
# A JPEG is decoded no finer than this needs.
_DECODED_SIDE = 64


def keeps_class_mirrored(train: ImageDataset) -> bool:
    """Whether mirrored images may be shown for their class.

    Each of up to 1,000 images (or 200 volumes, seen from above), 16×16 and gray, takes the class of the most
    similar other one, upright and mirrored. Where it is right upright and much less often mirrored (as with
    digits and letters), mirroring changes the class, or makes what never occurs. Where one class has more
    than half of the images, each class counts the same: to guess it would be right too often.

    Where similar pixels do not show the class (as in photographs), it is taken to be harmless, but not in
    images that are at least twice as wide as high: lines of text and spectrograms have an order from left to
    right. With several labels an image, or numbers, it is not looked for, and mirrored images are not shown.
    """
    if train.task != "single-label":
        return False
    pixels, labels = _sample(train)
    if len(labels) < 20:
        return not _is_wide(train)
    counts = np.bincount(labels)[labels]
    unequal = 2 * counts.max() > len(labels)
    weights = 1 / counts if unequal else np.ones(len(labels))
    weights /= weights.sum()
    upright = _share_right(pixels, pixels, labels, weights)
    mirrored = _share_right(pixels[:, :, ::-1], pixels, labels, weights)
    chance = 1 / len(np.unique(labels)) if unequal else float(counts.max() / len(labels))
    deviation = math.sqrt(0.25 * float((weights**2).sum()))
    known = upright - chance
    if known < 4 * deviation:
        return not _is_wide(train)
    return mirrored - chance > 0.75 * known


def _is_wide(train: ImageDataset) -> bool:
    """Whether images are usually at least twice as wide as high."""
    if train.dims != 2:
        return False
    return float(np.median([header.width / header.height for header in train.some_headers])) >= 2


def _sample(train: ImageDataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gray pixels (N, 16, 16) of evenly chosen images, each with mean 0 and length 1, and labels (N,)."""
    pixels, labels = [], []
    most = sample_size(train, _IMAGES) if train.dims == 2 else _VOLUMES
    for index in np.linspace(0, len(train) - 1, min(len(train), most)).astype(int):
        try:
            image = _gray(train, int(index)).resize((_SIDE, _SIDE))
        except ImageDecodeError:
            continue
        values = np.asarray(image, dtype=np.float32)
        values = values - values.mean()
        pixels.append(values / max(float(np.linalg.norm(values)), 1e-6))
        labels.append(int(train.labels[index]))
    return np.array(pixels, dtype=np.float32).reshape(-1, _SIDE, _SIDE), np.array(labels, dtype=np.int64)


def _gray(train: ImageDataset, index: int) -> Image.Image:
    """An image in gray; of a volume the mean over its depth and its channels, (H, W)."""
    if not isinstance(train, VolumeDataset):
        return train.open_reduced(index, _DECODED_SIDE, channels=1)
    values = train.values(index, train.channels).array
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=float(np.nanmin(values)))
    return Image.fromarray(values.mean(axis=(0, -1), dtype=np.float32))


def _share_right(
    queries: NDArray[np.float32],
    pixels: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> float:
    """How often the most similar other image has the same label; images count by their weights, of sum 1."""
    similar = queries.reshape(len(queries), -1) @ pixels.reshape(len(pixels), -1).T
    np.fill_diagonal(similar, -np.inf)
    return float(weights[labels[similar.argmax(1)] == labels].sum())
