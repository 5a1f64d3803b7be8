"""Whether an export computes what its classifier computes: both answer the same images.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.classifier import Classifier
from skipnets.data.decoding import ImageDecodeError, open_image
from skipnets.data.sources import ImageDataset, open_dataset
from skipnets.errors import UserError
from skipnets.evaluation.evaluating import open_own_images

if TYPE_CHECKING:
    from skipnets.inputs import Image

__all__ = ["Check", "CheckFailedError", "CheckImages", "check_images"]

CHECKED_IMAGES = 64


class CheckFailedError(UserError):
    """An export does not compute what the classifier does; there is no file."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an export compares with the classifier in PyTorch.

    Attributes:
        images: Which images, for people.
        count: How many.
        largest_difference: Of any probability of any image.
        same_labels: For how many images the most probable class is the same.
    """

    images: str
    count: int
    largest_difference: float
    same_labels: int


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Images to compare an export with PyTorch on."""

    name: str
    sources: Sequence[Image]

    def compare(self, classifier: Classifier, exported: Classifier) -> Check:
        """Both classifiers' probabilities, in batches of several sizes."""
        first, second = (
            np.concatenate([each.probabilities(each.preprocess(part)) for part in self._batches()])
            for each in (classifier, exported)
        )
        return Check(
            images=self.name,
            count=len(first),
            largest_difference=float(np.abs(first - second).max()),
            same_labels=int((first.argmax(1) == second.argmax(1)).sum()),
        )

    def _batches(self) -> list[Sequence[Image]]:
        """One image alone, then eight at a time: the number of images must not matter."""
        return [self.sources[:1], *(self.sources[i : i + 8] for i in range(1, len(self.sources), 8))]


def check_images(classifier: Classifier, data: str | os.PathLike[str] | ImageDataset | None) -> CheckImages:
    """Images that were given, else the classifier's own validation images, else generated ones."""
    if data is not None:
        dataset = data if isinstance(data, ImageDataset) else open_dataset(data, fractions=None)
        name = "the given images" if isinstance(data, ImageDataset) else os.fspath(data)
        return _sample(dataset, name)
    try:
        return _sample(open_own_images(classifier).split("val"), "the run's validation images")
    except UserError:
        return CheckImages(name="generated images", sources=_generated(24))


def _sample(dataset: ImageDataset, name: str) -> CheckImages:
    """Up to `CHECKED_IMAGES` that can be read, evenly spaced."""
    if not len(dataset):
        raise UserError(f"{name}: there are no images to check on")
    step = max(len(dataset) / CHECKED_IMAGES, 1)
    positions = (np.arange(min(len(dataset), CHECKED_IMAGES)) * step).astype(int)
    sources = [dataset.source(int(position)) for position in positions]
    return CheckImages(name=name, sources=_readable(sources, name))


def _readable(sources: list[Any], name: str) -> list[Any]:
    found = []
    for source in sources:
        try:
            open_image(source)
        except ImageDecodeError:
            continue
        found.append(source)
    if not found:
        raise UserError(f"{name}: none of the images can be read")
    return found


def _generated(count: int) -> list[NDArray[np.uint8]]:
    """Images of many shapes with large and small structure, the same every time."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        height, width = (int(side) for side in generator.integers(24, 400, 2))
        y, x = np.mgrid[0:height, 0:width] / 50
        waves = np.stack(
            [np.sin(x * a + y * b + c) for a, b, c in generator.normal(size=(3, 3)) * (2, 2, 3)], axis=2
        )
        noise = generator.normal(size=waves.shape) * generator.uniform(0, 0.5)
        images.append(np.clip(127.5 + 127.5 * (waves + noise), 0, 255).astype(np.uint8))
    return images
