"""Copies of images: the same bytes, and what is left of an image after saving, cropping or mirroring it.

Near copies are found in two steps. A descriptor of 63 numbers (the lowest frequencies of the cosine transform
of the gray image at 32×32, as in pHash, but not cut to bits) names a few candidates for each image. Each
candidate is then aligned by shift and scale (Lucas and Kanade, 1981, with gain and offset for brightness)
and compared pixel by pixel, which tells a crop of an image from an image that is merely alike. Of images that
are large enough, the details of what was found are compared as well: photographs of different things before
one background agree in everything else.

N images, P pairs, S side of a thumbnail.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from skipnets.data.alignment import (
    align,
    aligned_distance,
    correlation,
    halved,
    resampling,
    unmoved,
)
from skipnets.data.contents import Content, repeated
from skipnets.data.decoding import is_image
from skipnets.data.nearest import find_nearest
from skipnets.data.thumbnails import gray_thumbnail, gray_thumbnails
from skipnets.files import atomic_path
from skipnets.machine import usable_cores
from skipnets.terminal import csv_text

if TYPE_CHECKING:
    from skipnets.data.dataset import ImageDataset

T = TypeVar("T")

# Beyond this, only exact copies are looked for: comparing grows with the square of the number of images.
MOST = 100_000

_SIDE = 32
_FREQUENCIES = 8
# How far apart descriptors (of length 1) and aligned thumbnails (likewise) of copies may be: at these, 95%
# of re-encodings and crops to 90% are found among CIFAR-10's images; see benchmarks/duplicates.py.
_CANDIDATE_DISTANCE = 0.8
_COPY_DISTANCE = 0.2
_CANDIDATES = 3
# Pairs further apart than this after two and after four steps of aligning them at half the size are given
# up. That costs none of the 1,296 copies among CIFAR-10's 60,000 images, and leaves a quarter of the pairs.
_HOPELESS_DISTANCES = (0.6, 0.5)
# Of more images than this, so many and up to twice as many show how alike images are that are no copies.
_SAMPLE = 16_384
# Descriptors' numbers that change their sign when an image is mirrored: of odd frequency from left to right.
_TURNED = np.arange(1, _FREQUENCIES**2) % _FREQUENCIES % 2 == 1
# Images of at least this side are compared again at it, by what a Gaussian blur of so many pixels takes away.
# The correlation of these details is 0.94 or more for copies of photographs and emoji (the lowest at JPEG
# quality 30), and 0.81 or less for different clothes on one cloth.
_DETAILED_SIDE = 64
_DETAIL_BLUR = 3.0
_LEAST_DETAIL_CORRELATION = 0.87
# Smaller images hold too little to tell copies from images that are alike.
LEAST_SIDE = 16
# Thumbnails that vary less than this many gray levels show nothing that could be compared.
_LEAST_CONTRAST = 4
_IMAGES_AT_ONCE = 4096
# Images on which the time is measured, and the pairs that an image takes (those that are alike take longer).
_PROBED, _PROBE_SECONDS = 512, 2.0
_PAIRS_OF_AN_IMAGE = 8
# Pairs that are aligned at once: what is computed of so many fits into a processor's cache.
_PAIRS_AT_ONCE = 64
_HALVES_AT_ONCE = 256


class Copy(NamedTuple):
    """Two images that show the same.

    Attributes:
        first: The position of one.
        second: The position of the other, which comes later.
        exact: Whether their bytes are equal.
        distance: How far the aligned thumbnails are apart, 0 to 0.2.
    """

    first: int
    second: int
    exact: bool
    distance: float


def find_copies(
    dataset: ImageDataset,
    contents: Sequence[Content],
    progress: Callable[[int, int], object] | None = None,
    *,
    near: bool = True,
) -> list[Copy]:
    """Find which images of a dataset are copies of others, in the order of their positions.

    Args:
        dataset: Of any size; near copies are looked for among up to 100,000 images.
        contents: Of each image, from `skipnets.data.contents`.
        progress: Called with the number of steps done and their total; an image takes three, one to decode
            it and two to compare it.
        near: Whether near copies are looked for, which takes much longer than exact ones.
    """
    exact = [
        Copy(same[0], other, exact=True, distance=0.0)
        for same in repeated(contents)
        if _can_be_read(dataset, same[0])
        for other in same[1:]
    ]
    # Of equal files one stands for all.
    first_only = np.setdiff1d(np.arange(len(dataset)), [copy.second for copy in exact])
    found = _find_near(dataset, first_only, progress) if near and 1 < len(first_only) <= MOST else []
    return sorted([*exact, *found])


def expected_seconds(dataset: ImageDataset) -> float:
    """About how long looking for near copies among all images takes, measured on some of them; 0 for none."""
    count = len(dataset)
    if not 1 < count <= MOST or (dataset.images is not None and min(dataset.images.shape[1:3]) < LEAST_SIDE):
        return 0.0
    some = np.unique(np.linspace(0, count - 1, _PROBED).astype(np.int64))
    gray_thumbnails(dataset, some[:2], _SIDE, at_least=LEAST_SIDE)  # what is slower the first time
    _, seconds = _timed([partial(gray_thumbnails, dataset, some[2:10], _SIDE, at_least=LEAST_SIDE)])
    # Of large photographs fewer must do.
    some = some[:: max(math.ceil(len(some) * seconds / 8 / _PROBE_SECONDS), 1)]
    parts = np.array_split(some, 4)
    thumbnails, decoding = _timed(
        [partial(gray_thumbnails, dataset, part, _SIDE, at_least=LEAST_SIDE) for part in parts]
    )
    images = np.concatenate(thumbnails)
    pairs = np.stack([np.arange(len(images)), np.roll(np.arange(len(images)), 1)], 1)
    in_full = np.zeros(len(pairs), dtype=bool)
    _, aligning = _timed(
        [lambda: _aligned_distances(images, pairs, False, in_full, _Steps(len(pairs), None))] * 3
    )
    # In so many dimensions, random descriptors are far apart, as those of images mostly are.
    random = np.random.default_rng(0).standard_normal((_PROBED, len(_TURNED)), dtype=np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    _, comparing = _timed(
        [lambda: find_nearest(random, _TURNED, _CANDIDATES + 1, within=_CANDIDATE_DISTANCE)] * 3
    )
    for_each = decoding / len(parts[0]) + _PAIRS_OF_AN_IMAGE * aligning / len(pairs)
    return count * for_each + (count / _PROBED) ** 2 / 2 * comparing


def _timed(works: Sequence[Callable[[], T]]) -> tuple[list[T], float]:
    """The results, and the median of the seconds that they take."""
    results, seconds = [], []
    for work in works:
        start = time.perf_counter()
        results.append(work())
        seconds.append(time.perf_counter() - start)
    return results, statistics.median(seconds)


def _can_be_read(dataset: ImageDataset, position: int) -> bool:
    """Whether the header can be read: equal files that are no images say nothing."""
    return dataset.images is not None or dataset.dims != 2 or is_image(dataset.source(position))


def clusters(copies: Iterable[Copy], count: int) -> NDArray[np.int64]:
    """(count,) for each image the position of the first image that it is directly or indirectly a copy of."""
    # Disjoint sets (Galler and Fischer, 1964): every image leads to an earlier one of its set, or to itself.
    earlier = list(range(count))

    def first_of(image: int) -> int:
        while earlier[image] != image:
            earlier[image] = image = earlier[earlier[image]]
        return image

    for copy in copies:
        one, other = sorted((first_of(copy.first), first_of(copy.second)))
        earlier[other] = one
    return np.array([first_of(image) for image in range(count)], dtype=np.int64)


def write_copies(path: str | os.PathLike[str], copies: Iterable[Copy], dataset: ImageDataset) -> None:
    """Write the copies as CSV: both images with labels and splits, and how alike they are."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "copy", "copy_label", "copy_split", "exact", "distance"])
        labels = dataset.label_names
        for copy in copies:
            sides = [
                (dataset.names[index], labels[index], dataset.splits[index])
                for index in (copy.first, copy.second)
            ]
            cells = [*sides[0], *sides[1], copy.exact, f"{copy.distance:.4f}"]
            writer.writerow(map(csv_text, cells))


def _find_near(
    dataset: ImageDataset, positions: NDArray[np.int64], progress: Callable[[int, int], object] | None
) -> list[Copy]:
    if importlib.util.find_spec("scipy") is None:  # in the core installation, which only predicts
        return []
    if dataset.images is not None and min(dataset.images.shape[1:3]) < LEAST_SIDE:
        return []
    steps = _Steps(3 * len(positions), progress)
    thumbnails = gray_thumbnails(
        dataset, positions, _SIDE, at_least=LEAST_SIDE, progress=lambda share: steps.go_to(share / 3)
    )
    varied = np.concatenate([part.std((1, 2)) for part in _parts(thumbnails)]) >= _LEAST_CONTRAST
    thumbnails, positions = thumbnails[varied], positions[varied]
    if len(positions) < 2:
        return []
    own = np.arange(len(positions))
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    background = np.ones(len(positions))
    candidates = find_nearest(
        _describe(thumbnails),
        _TURNED,
        _CANDIDATES + 1,  # one of them is the image itself
        within=_CANDIDATE_DISTANCE,
        progress=lambda share: steps.go_to((1 + share) / 3),
    )
    # A sample shows how alike images are that are no copies.
    sample = own % -(-len(own) // _SAMPLE) == 0
    for mirrored, found in zip((False, True), candidates, strict=True):
        image, rank = np.nonzero((found.positions >= 0) & (found.positions != own[:, None]))
        pairs = np.stack([image, found.positions[image, rank]], 1)
        in_full = np.zeros(len(pairs), dtype=bool) if mirrored else sample[image]
        steps.go_to((4 + mirrored) / 6)
        aligned = _aligned_distances(thumbnails, pairs, mirrored, in_full, steps)
        if not mirrored:
            background = _background(image[in_full], aligned[in_full], len(positions))[sample]
        near = aligned <= _COPY_DISTANCE
        for (one, other), distance in zip(pairs[near].tolist(), aligned[near].tolist(), strict=True):
            key = (min(one, other), max(one, other))
            best[key] = min((distance, mirrored), best.get(key, (np.inf, False)))
    steps.go_to(1)
    # Where all images are alike (digits, scans), copies must be far more so than images usually are.
    limit = min(_COPY_DISTANCE, float(np.median(background)) / 4)
    found_pairs = [(pair, *how) for pair, how in best.items() if how[0] <= limit]
    pairs = positions[np.array([pair for pair, _, _ in found_pairs], dtype=np.int64).reshape(-1, 2)]
    agree = _details_agree(dataset, pairs, np.array([mirrored for _, _, mirrored in found_pairs], dtype=bool))
    return [
        Copy(int(one), int(other), exact=False, distance=distance)
        for (one, other), (_, distance, _), same in zip(pairs, found_pairs, agree, strict=True)
        if same
    ]


def _details_agree(
    dataset: ImageDataset, pairs: NDArray[np.int64], mirrored: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(P,) whether the details of two images are those of one, or the images are too small to have any."""
    from scipy.ndimage import gaussian_filter

    agree = np.ones(len(pairs), dtype=bool)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        distinct, index = np.unique(part, return_inverse=True)
        with ThreadPoolExecutor(4) as pool:
            images = list(
                pool.map(
                    lambda position: gray_thumbnail(
                        dataset, position, _DETAILED_SIDE, at_least=_DETAILED_SIDE
                    ),
                    distinct.tolist(),
                )
            )
        members = index.reshape(part.shape)
        rows = [row for row, pair in enumerate(members) if all(images[image] is not None for image in pair)]
        if not rows:
            continue
        moving, fixed = (
            np.stack([images[image] for image in members[rows, which]]).astype(np.float32) for which in (0, 1)
        )
        turned = mirrored[start : start + _PAIRS_AT_ONCE][rows]
        moving[turned] = moving[turned, :, ::-1]
        placement = unmoved(len(rows))
        small = halved(moving), halved(fixed)
        placement = align(halved(small[0]), halved(small[1]), placement, steps=4)
        placement = align(*small, placement=placement, steps=3)
        placement = align(moving, fixed, placement, steps=3)
        by_row, by_column, inside = resampling(placement, _DETAILED_SIDE)
        one, other = (
            each - gaussian_filter(each, (0, _DETAIL_BLUR, _DETAIL_BLUR))
            for each in (by_row @ moving @ by_column, fixed)
        )
        agree[start + np.array(rows)] = correlation(one, other, inside == 1) >= _LEAST_DETAIL_CORRELATION
    return agree


class _Steps:
    """Reports how far the search has come."""

    def __init__(self, total: int, progress: Callable[[int, int], object] | None) -> None:
        self.total = total
        self.done = 0.0
        self.progress = progress

    def go_to(self, share: float) -> None:
        self.go(share * self.total - self.done)

    def go(self, steps: float) -> None:
        self.done += steps
        if self.progress is not None:
            self.progress(round(self.done), self.total)


def _parts(thumbnails: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Thumbnails some thousands at a time: as floats, all of them would fill the memory."""
    return (
        thumbnails[start : start + _IMAGES_AT_ONCE] for start in range(0, len(thumbnails), _IMAGES_AT_ONCE)
    )


def _background(rows: NDArray[np.int64], distances: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """(count,) how far each image is from the last of its candidates; 1 where there are fewer."""
    furthest = np.zeros(count)
    np.maximum.at(furthest, rows, distances)
    return np.where(np.bincount(rows, minlength=count) < _CANDIDATES, 1.0, furthest)


def _describe(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, S, S) → (N, 63) of length 1: equal for equal images whatever their brightness and contrast."""
    # The cosine transform as two products; only its lowest frequencies are needed.
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_SIDE) + 0.5
    basis = np.cos(np.pi * frequency * place / _SIDE, dtype=np.float32)
    basis[0] *= np.float32(0.5**0.5)
    described = np.concatenate(
        [
            (basis @ part.astype(np.float32) @ basis.T).reshape(len(part), -1)[:, 1:]
            for part in _parts(thumbnails)
        ]
    )
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    return described


def _aligned_distances(
    thumbnails: NDArray[np.uint8],
    pairs: NDArray[np.int64],
    mirrored: bool,
    in_full: NDArray[np.bool_],
    steps: _Steps,
) -> NDArray[np.float32]:
    """(P,) how far the two images of each pair are apart once the first is laid on the second.

    Those that are still far apart when they are roughly aligned are aligned no further, and infinitely far
    apart; those `in_full` are aligned in any case.
    """
    placement = unmoved(len(pairs))
    distances = np.full(len(pairs), np.inf, dtype=np.float32)
    left = np.arange(len(pairs))
    # Some pairs are there both ways, one image laid on the other: they are given up together.
    _, either_way = np.unique(np.sort(pairs, 1), axis=0, return_inverse=True)

    def align_further(part: NDArray[np.int64], halves: bool) -> NDArray[np.floating]:
        moving, fixed = (thumbnails[pairs[part, which]].astype(np.float32) for which in (0, 1))
        if mirrored:
            moving = moving[:, :, ::-1]
        if halves:
            moving, fixed = halved(moving), halved(fixed)
        placement[part] = align(moving, fixed, placement[part], steps=2)
        return aligned_distance(moving, fixed, placement[part])

    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        for hopeless in (*_HOPELESS_DISTANCES, None):
            halves = hopeless is not None
            at_once = _HALVES_AT_ONCE if halves else _PAIRS_AT_ONCE
            parts = [left[start : start + at_once] for start in range(0, len(left), at_once)]
            reached: list[NDArray[np.floating]] = [np.empty(0)]
            for found in pool.map(align_further, parts, [halves] * len(parts)):
                reached.append(found)
                steps.go(steps.total / 18 * len(found) / len(left))
            if hopeless is None:
                distances[left] = np.concatenate(reached)
            else:
                nearer = np.full(len(pairs), np.inf)
                np.minimum.at(nearer, either_way[left], np.concatenate(reached))
                left = left[(nearer[either_way[left]] <= hopeless) | in_full[left]]
    return distances
