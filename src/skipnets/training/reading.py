"""How long reading the images takes: much longer than computing, where they are large photographs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipnets.data.augmentation import Policy, find_augmentation, vary
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.loading import HELD_BYTES
from skipnets.data.preprocessing import Preprocessing
from skipnets.training import budget

# How many images are read to measure it, and the time after which fewer must do.
_IMAGES, _SECONDS = 16, 0.5
# How many images are varied to measure that.
_VARIED = 16
# Of large images so many pixels, but at least so many images, are looked at before training: a few seconds.
_SAMPLED_PIXELS, _LEAST_SAMPLE = 400_000_000, 64


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading adds to the time of a training.

    Attributes:
        seconds_per_image: Of reading an image exactly, as for the test, all workers together.
        before: Seconds before the first step, in which images that are held in memory are all read.
    """

    seconds_per_image: float = 0.0
    before: float = 0.0


NOT_MEASURED = Reading()


def seconds_to_read(
    train: ImageDataset,
    size: tuple[int, ...],
    *,
    channels: int,
    fit: str | None = None,
    interpolation: str | None = None,
    exactly: bool = False,
) -> float:
    """Seconds in which one thread reads a training image: the mean over a few; 0 where they are in memory.

    Args:
        train: The training images.
        size: Of the input.
        channels: Of the input.
        fit: How images are fitted into it; None for the default.
        interpolation: How they are resized; None for the default.
        exactly: As for validation and test; otherwise as for training, which reads large JPEGs faster.
    """
    if train.images is not None:
        return 0.0
    as_they_are = train.dims != 2 or train.bits > 8 or channels not in (1, 3)
    given = {"fit": fit, "interpolation": interpolation}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    reading = None if as_they_are else Preprocessing(size, channels=channels, **options)
    begin = budget.clock()
    seconds: list[float] = []
    for index in np.linspace(0, len(train) - 1, min(len(train), _IMAGES)).astype(int).tolist():
        start = budget.clock()
        try:
            if reading is None:
                train.values(index, channels)
            else:
                (reading.pixels if exactly else reading.training_pixels)(train.source(index))
        except ImageDecodeError:  # it is named when training reads it
            continue
        seconds.append(budget.clock() - start)
        if budget.clock() - begin > _SECONDS:
            break
    # The first one finds the decoder, too.
    return statistics.fmean(seconds[1:] or seconds) if seconds else 0.0


def sample_size(train: ImageDataset, most: int) -> int:
    """How many images to look at before training: fewer than `most` where they are large photographs."""
    pixels = [math.prod(header.sides) for header in train.some_headers]
    if not pixels:
        return most
    return min(most, max(int(_SAMPLED_PIXELS / statistics.median(pixels)), _LEAST_SAMPLE))


class ReadingCost:
    """What reading and augmenting add to the time of a training.

    Args:
        train: The training images.
        others: Number of validation images, which are read as well.
        channels: Of the input.
        to_read: Seconds that reading a training image takes, all workers together.
        to_evaluate: Likewise, a validation image.
        workers: How many these are.
        held_bytes: The most memory that decoded images may take.
    """

    def __init__(
        self,
        train: ImageDataset,
        *,
        others: int,
        channels: int,
        to_read: float,
        to_evaluate: float,
        workers: int,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.train = train
        self.others = others
        self.channels = channels
        self.to_read = to_read
        self.to_evaluate = to_evaluate
        self.workers = workers
        self.held_bytes = held_bytes
        self._varying: dict[tuple[str, tuple[int, ...]], float] = {}

    def is_held(self, size: tuple[int, ...], augmentation: str | None) -> bool:
        """Whether each image is read once and kept; see `skipnets.data.loading.training_loader`."""
        train = self.train
        width = 1 if train.bits <= 8 and train.dims == 2 and self.channels in (1, 3) else 4
        fits = len(train) * math.prod(size) * self.channels * width <= self.held_bytes
        return fits and not find_augmentation(augmentation or "none", size).resized_crop

    def before(self, size: tuple[int, ...], augmentation: str | None) -> float:
        """Seconds before the first step."""
        if not self.is_held(size, augmentation):
            return 0.0
        return self.to_read * len(self.train) + self.to_evaluate * self.others

    def of_each(self, size: tuple[int, ...], augmentation: str | None) -> float:
        """Seconds of a training image beside the network's, where images are not held as they are."""
        policy = find_augmentation(augmentation or "none", size).policy
        varying = 0.0 if policy is None else self._seconds_to_vary(policy, size) / self.workers
        return varying + (0.0 if self.is_held(size, augmentation) else self.to_read)

    def _seconds_to_vary(self, policy: Policy, size: tuple[int, ...]) -> float:
        if (policy, size) not in self._varying:
            kind = np.uint8 if self.channels in (1, 3) else np.float32
            images = np.full((_VARIED, *size, self.channels), 127, dtype=kind)
            with torch.random.fork_rng(devices=[]):
                vary(images[:2], policy)
                start = budget.clock()
                vary(images, policy)
            self._varying[policy, size] = (budget.clock() - start) / _VARIED
        return self._varying[policy, size]
