"""Fit a score of how unusual an image is, for a classifier.

Which score recognizes outliers best depends on network and images. There are no outliers to choose by, so
they are made from validation images, in ways that keep some of what these are: their parts but not their
order, their average with another, their brightness and contrast alone.

Shapes: N images, C channels, H height, W width, K classes, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import evaluation_batches
from skipnets.errors import needs_extra
from skipnets.uncertainty import (
    CalibrationScores,
    OutlierDetector,
    OutlierScore,
    outlier_scores,
    reference_size,
)

with needs_extra("train"):
    from sklearn.metrics import roc_auc_score

__all__ = ["altered", "fit_outlier_detector"]

_MOST_VALIDATION = 1000
_MOST_ALTERED = 200  # in each of three ways
_TILES = 4  # a side


def fit_outlier_detector(
    classifier: Classifier,
    validation: ImageDataset,
    training: ImageDataset | None,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> OutlierDetector:
    """Choose the score that best tells validation images from altered ones.

    Args:
        classifier: Computes logits and embeddings. With several labels an image, logits do not show it: those
            of an image without any label are low, and it is no outlier.
        validation: Images that it was not trained on, of which up to 1,000 are used.
        training: Images that it was trained on, for the distance to their embeddings; None without them,
            which takes a classifier of one class an image.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        seed: Which images are used, and how they are altered.
        progress: Called after every batch with the number of images done and their total.
    """
    rng = np.random.default_rng(seed)
    validation = _some(validation, _MOST_VALIDATION, rng)
    done, total = 0, len(validation)

    def batches(dataset: ImageDataset) -> Iterator[NDArray[Any]]:
        nonlocal done
        for batch in evaluation_batches(
            dataset,
            classifier.preprocessing,
            batch_size=batch_size,
            workers=workers,
            normalize=classifier.runtime.input_type == "float32",
        ):
            if len(batch.inputs):
                yield batch.inputs
            done += len(batch.names)
            if progress is not None:
                progress(done, total)

    usual: list[NDArray[np.float32]] = []
    embedded: list[NDArray[np.float32]] = []
    # What the network makes of altered images, which take too much memory to keep.
    unusual: list[NDArray[np.float32]] = []
    odd: list[NDArray[np.float32]] = []
    for inputs in batches(validation):
        usual.append(classifier.logits(inputs))
        if training is not None:
            embedded.append(classifier.embed_batch(inputs))
        if sum(map(len, unusual)) < 3 * _MOST_ALTERED:
            for changed in altered(inputs, rng):
                unusual.append(classifier.logits(changed))
                if training is not None:
                    odd.append(classifier.embed_batch(changed))
    logits = np.concatenate(usual), np.concatenate(unusual)
    scores: dict[OutlierScore, tuple[NDArray[np.float64], NDArray[np.float64]]] = {
        name: (outlier_scores(name, logits[0]), outlier_scores(name, logits[1]))
        for name in get_args(OutlierScore)
        if name != "knn" and classifier.task == "single-label"
    }
    reference = None
    if training is not None:
        features = np.concatenate(embedded)
        training = _some(training, reference_size(features.shape[1]), rng)
        total += len(training)
        seen = np.concatenate([classifier.embed_batch(inputs) for inputs in batches(training)])
        lengths = np.linalg.norm(seen, axis=1, keepdims=True)
        reference = (seen / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float16)
        scores["knn"] = (
            outlier_scores("knn", logits[0], features, reference),
            outlier_scores("knn", logits[1], np.concatenate(odd), reference),
        )
    auroc = {name: _auroc(*pair) for name, pair in scores.items()}
    best = max(auroc, key=lambda name: auroc[name])
    return OutlierDetector(
        score=best,
        calibration=CalibrationScores.of(scores[best][0]),
        reference=reference if best == "knn" else None,
        auroc={str(name): value for name, value in auroc.items()},
    )


def altered(inputs: NDArray[Any], rng: np.random.Generator) -> list[NDArray[Any]]:
    """Images that are like others in part: tiles in another order, averages of two, noise.

    Args:
        inputs: (N, C, H, W), or those of signals or volumes, pixels or normalized.
        rng: Draws the order, the pairs and the noise.

    Returns:
        Three batches like `inputs`. Noise has the mean and standard deviation of each image's channels.
    """
    tiled = inputs.copy()
    tiles = list(itertools.product(*map(_parts, inputs.shape[2:])))
    for image, original in zip(tiled, inputs, strict=True):
        for tile, other in zip(tiles, rng.permutation(len(tiles)), strict=True):
            image[:, *tile] = original[:, *tiles[other]]
    values = inputs.astype(np.float32)
    # Another image, unless there is but one.
    blended = (values + np.roll(values, 1 + rng.integers(max(len(values) - 1, 1)), axis=0)) / 2
    sides = tuple(range(2, values.ndim))
    mean, std = values.mean(sides, keepdims=True), values.std(sides, keepdims=True)
    noise = mean + std * rng.standard_normal(values.shape, dtype=np.float32)
    if inputs.dtype == np.uint8:
        blended, noise = (np.rint(each).clip(0, 255) for each in (blended, noise))
    return [tiled, blended.astype(inputs.dtype), noise.astype(inputs.dtype)]


def _parts(side: int) -> list[slice]:
    """Tiles of equal length along an axis; all of one that is too short."""
    if side < _TILES:
        return [slice(None)]
    length = side // _TILES
    return [slice(start, start + length) for start in range(0, _TILES * length, length)]


def _some(dataset: ImageDataset, count: int, rng: np.random.Generator) -> ImageDataset:
    if len(dataset) <= count:
        return dataset
    return dataset.select(np.sort(rng.choice(len(dataset), count, replace=False)))


def _auroc(usual: NDArray[np.float64], unusual: NDArray[np.float64]) -> float:
    labels = np.repeat([0, 1], [len(usual), len(unusual)])
    return float(roc_auc_score(labels, np.concatenate([usual, unusual])))
