"""Select the images that the report shows, and make their thumbnails as data URIs.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.preprocessing import ImageDecodeError
from skipnets.errors import UserError
from skipnets.insight.attribution import explain, resized
from skipnets.insight.overlays import overlay
from skipnets.insight.planes import shown_image
from skipnets.report.label_results import LabelResults
from skipnets.report.regression_results import RegressionResults
from skipnets.report.results import Results
from skipnets.report.thumbnails import data_uri, thumbnail_scale

__all__ = [
    "AnyResults",
    "Cell",
    "Thumbnails",
    "confusion_cells",
    "least_confident_correct",
    "most_confident_mistakes",
]

AnyResults = Results | LabelResults | RegressionResults

GALLERY = 12  # images in each gallery with Grad-CAM
WRONG_CELL, RIGHT_CELL = 12, 6  # images of one cell of the confusion matrix
ALL_CELLS = 600  # images of all cells


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A non-empty cell of the confusion matrix.

    Attributes:
        true: The true class.
        predicted: The predicted class.
        count: Number of images.
        shown: Indices of the images on the page: the most confident mistakes, or the least confident correct
            predictions.
    """

    true: int
    predicted: int
    count: int
    shown: tuple[int, ...]


def most_confident_mistakes(results: Results) -> list[int]:
    """Indices of the mistakes, the most confident first."""
    wrong = np.flatnonzero(results.predicted != results.labels)
    return _in_order(wrong, -results.probabilities.max(1))[:GALLERY]


def least_confident_correct(results: Results) -> list[int]:
    """Indices of the correct predictions, the least confident first."""
    right = np.flatnonzero(results.predicted == results.labels)
    return _in_order(right, results.probabilities.max(1))[:GALLERY]


def confusion_cells(results: Results) -> list[Cell]:
    """The non-empty cells of the confusion matrix: mistakes first, then by size.

    Once `ALL_CELLS` images are shown, further cells show none.
    """
    confidence, classes = results.probabilities.max(1), len(results.classes)
    cell_of = results.labels * classes + results.predicted
    cells, left = [], ALL_CELLS
    numbers, counts = np.unique(cell_of, return_counts=True)
    is_right = numbers // classes == numbers % classes
    for index in np.lexsort((-counts, is_right)):
        number, right = int(numbers[index]), bool(is_right[index])
        members = _in_order(np.flatnonzero(cell_of == number), confidence if right else -confidence)
        shown = members[: min(RIGHT_CELL if right else WRONG_CELL, left)]
        left -= len(shown)
        cells.append(
            Cell(
                true=number // classes,
                predicted=number % classes,
                count=int(counts[index]),
                shown=tuple(shown),
            )
        )
    return cells


class Thumbnails:
    """The test images, as thumbnails.

    Args:
        results: The predictions, with the images' names.
        dataset: The images; None if they are no longer there.
        classifier: The classifier that Grad-CAM explains.
        classifier_of: Where several have predicted, the one that did for the image at an index.
    """

    def __init__(
        self,
        results: AnyResults,
        dataset: ImageDataset | None,
        classifier: Classifier,
        classifier_of: Callable[[int], Classifier] | None = None,
    ) -> None:
        self._results = results
        self._dataset = dataset
        self._classifier = classifier
        self._classifier_of = classifier_of or (lambda _: classifier)
        # Parquet holds valid UTF-8; other bytes of a file name are � there.
        names = [] if dataset is None else dataset.names
        self._position = {_valid(name): index for index, name in enumerate(names)}
        self.missing = sum(name not in self._position for name in results.names)

    def thumbnail(self, index: int) -> str | None:
        """An image as a data URI; None if it is not there."""
        opened = self._open(index)
        if opened is None:
            return None
        shown, _ = opened
        return data_uri(resized(shown, thumbnail_scale(shown)))

    def explained(self, index: int, classes: Sequence[str]) -> tuple[str | None, list[str]]:
        """An image and its Grad-CAM overlay for each of these classes, as data URIs."""
        opened = self._open(index)
        if opened is None:
            return None, []
        small, image = opened
        scale = thumbnail_scale(small)
        shown = data_uri(resized(small, scale))
        try:
            [explanations] = explain(self._classifier_of(index), [image], classes=classes)
        except UserError:  # a network whose every map is a single value
            return shown, []
        return shown, [data_uri(overlay(explanation.resized(scale))) for explanation in explanations]

    def _open(self, index: int) -> tuple[Image.Image, Any] | None:
        """An image as people see it, and as `explain` takes it; None if it cannot be read."""
        position = self._position.get(self._results.names[index])
        if position is None or self._dataset is None:
            return None
        source, preprocessing = self._dataset.source(position), self._classifier.preprocessing
        try:
            if preprocessing.dims != 2:
                return shown_image(preprocessing, source), source
            image = preprocessing.open(source)
            return preprocessing.shown(image), image
        except ImageDecodeError:
            return None


def _in_order(positions: NDArray[np.int64], key: NDArray[Any]) -> list[int]:
    return [int(index) for index in positions[np.argsort(key[positions], kind="stable")]]


def _valid(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")
