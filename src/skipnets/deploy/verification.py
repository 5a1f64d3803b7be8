"""Verify that an export computes the same as its classifier, on the same images.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import worded
from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.options import options_of_images
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError, naming
from skipnets.evaluation.evaluating import open_own_images

if TYPE_CHECKING:
    from skipnets.inputs import Image

__all__ = ["Check", "CheckFailedError", "CheckImages", "check_images"]

CHECKED_IMAGES = 64
_SAME_NUMBER = 0.01  # standard deviations


class CheckFailedError(UserError):
    """An export's outputs differ from the classifier's; no file was written."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Comparison of an export with the classifier in PyTorch.

    Attributes:
        images: Description of the images.
        count: Number of images.
        largest_difference: Largest difference between two probabilities; of a regression, between two numbers
            in the target's standard deviations.
        same_labels: Number of images with the same most probable class; of multi-label classifiers, with all
            the same labels; of a regression, with numbers within a hundredth of a standard deviation.
    """

    images: str
    count: int
    largest_difference: float
    same_labels: int


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Images on which an export is compared with PyTorch."""

    name: str
    sources: Sequence[Image]

    def compare(self, classifier: Classifier, exported: Classifier) -> Check:
        """Compare both classifiers' probabilities, or scaled numbers, in batches of several sizes."""
        numbers = classifier.task == "regression"
        first, second = (
            np.concatenate(
                [
                    each.logits(batch).astype(np.float64) if numbers else each.probabilities(batch)
                    for batch in map(each.preprocess, self._batches())
                ]
            )
            for each in (classifier, exported)
        )
        return Check(
            images=self.name,
            count=len(first),
            largest_difference=float(np.abs(first - second).max()),
            same_labels=int(_same_answers(first, second, classifier).sum()),
        )

    def _batches(self) -> list[Sequence[Image]]:
        """One image, then eight at a time, because the batch size must not matter."""
        return [self.sources[:1], *(self.sources[i : i + 8] for i in range(1, len(self.sources), 8))]


def _same_answers(
    first: NDArray[np.float64], second: NDArray[np.float64], classifier: Classifier
) -> NDArray[np.bool_]:
    """(N,) whether an image's answers are the same."""
    if classifier.task == "single-label":
        return np.asarray(first.argmax(1) == second.argmax(1))
    if classifier.thresholds is not None:
        return np.asarray(((first >= classifier.thresholds) == (second >= classifier.thresholds)).all(1))
    return np.asarray((np.abs(first - second) <= _SAME_NUMBER).all(1))


def check_images(classifier: Classifier, data: str | os.PathLike[str] | ImageDataset | None) -> CheckImages:
    """The given images, else the validation images of the classifier's run, else generated ones."""
    dims = classifier.preprocessing.dims
    if data is not None:
        if isinstance(data, ImageDataset):
            return _sample(data, worded("the given images", dims), classifier.preprocessing)
        options = options_of_images(data, classifier.task, classifier.classes, dims=dims)
        with naming("check"):
            dataset = open_dataset(data, fractions=None, options=options)
        return _sample(dataset, os.fspath(data), classifier.preprocessing)
    try:
        own = open_own_images(classifier).split("val")
        name = worded("the run's validation images", dims)
        return _sample(own, name, classifier.preprocessing)
    except UserError:
        name = worded("generated images", dims)
        return CheckImages(name=name, sources=_generated(24, classifier.preprocessing))


def _sample(dataset: ImageDataset, name: str, preprocessing: Preprocessing) -> CheckImages:
    """Up to `CHECKED_IMAGES` readable images, evenly spaced."""
    if not len(dataset):
        raise UserError(f"{name}: there are no images to check on")
    step = max(len(dataset) / CHECKED_IMAGES, 1)
    positions = (np.arange(min(len(dataset), CHECKED_IMAGES)) * step).astype(int)
    sources = [dataset.source(int(position)) for position in positions]
    return CheckImages(name=name, sources=_readable(sources, name, preprocessing))


def _readable(sources: list[Any], name: str, preprocessing: Preprocessing) -> list[Any]:
    readable = []
    for source in sources:
        try:
            preprocessing.pixels(source)
        except ImageDecodeError:
            continue
        readable.append(source)
    if not readable:
        raise UserError(f"{name}: none of the images can be read")
    return readable


def _generated(count: int, preprocessing: Preprocessing) -> list[NDArray[Any]]:
    """Reproducible images of many shapes with coarse and fine structure, in color or of as many bands."""
    windowed = preprocessing.window is not None
    channels = preprocessing.channels if windowed or preprocessing.channels > 1 else 3
    generator = np.random.default_rng(0)
    if preprocessing.dims != 2:
        shape = (*preprocessing.size, preprocessing.channels)
        return [
            preprocessing.unwindowed(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)
        ]
    images = []
    for _ in range(count):
        height, width = (int(side) for side in generator.integers(24, 400, 2))
        y, x = np.mgrid[0:height, 0:width] / 50
        waves = np.stack(
            [np.sin(x * a + y * b + c) for a, b, c in generator.normal(size=(channels, 3)) * (2, 2, 3)],
            axis=2,
        )
        noise = generator.normal(size=waves.shape) * generator.uniform(0, 0.5)
        levels = np.clip(127.5 + 127.5 * (waves + noise), 0, 255).astype(np.uint8)
        images.append(preprocessing.unwindowed(levels))
    return images
