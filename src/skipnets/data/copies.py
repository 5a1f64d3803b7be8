"""Copies of images: the same bytes, and what is left of an image after saving, cropping or mirroring it anew.

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
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.contents import Content, repeated
from skipnets.data.decoding import ImageDecodeError, is_image
from skipnets.files import atomic_path
from skipnets.terminal import csv_text

if TYPE_CHECKING:
    from skipnets.data.sources import ImageDataset

# Beyond this, only exact copies are looked for: comparing grows with the square of the number of images.
MOST = 100_000

_SIDE = 32
_FREQUENCIES = 8
# How far apart descriptors (of length 1) and aligned thumbnails (likewise) of copies may be: at these, 95%
# of re-encodings and crops to 90% are found among CIFAR-10's images; see benchmarks/duplicates.py.
_CANDIDATE_DISTANCE = 0.8
_COPY_DISTANCE = 0.2
_CANDIDATES = 3
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
_PAIRS_AT_ONCE = 256
_IMAGES_AT_ONCE = 4096


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
) -> list[Copy]:
    """Find which images of a dataset are copies of others, in the order of their positions.

    Args:
        dataset: Of any size; near copies are looked for among up to 100,000 images.
        contents: Of each image, from `skipnets.data.contents`.
        progress: Called with the number of steps done and their total; an image takes three, one to decode
            it and two to compare it.
    """
    exact = [
        Copy(same[0], other, exact=True, distance=0.0)
        for same in repeated(contents)
        if _can_be_read(dataset, same[0])
        for other in same[1:]
    ]
    # Of equal files one stands for all.
    first_only = np.setdiff1d(np.arange(len(dataset)), [copy.second for copy in exact])
    near = _find_near(dataset, first_only, progress) if 1 < len(first_only) <= MOST else []
    return sorted([*exact, *near])


def _can_be_read(dataset: ImageDataset, position: int) -> bool:
    """Whether the header can be read: equal files that are no images say nothing."""
    return dataset.images is not None or is_image(dataset.source(position))


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
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:  # in the core installation, which only predicts
        return []
    if dataset.images is not None and min(dataset.images.shape[1:3]) < LEAST_SIDE:
        return []
    steps = _Steps(3 * len(positions), progress)
    thumbnails = _thumbnails(dataset, positions, steps)
    varied = np.concatenate([part.std((1, 2)) for part in _parts(thumbnails)]) >= _LEAST_CONTRAST
    thumbnails, positions = thumbnails[varied], positions[varied]
    if len(positions) < 2:
        return []
    descriptors = _describe(thumbnails)
    index = NearestNeighbors(algorithm="brute").fit(descriptors)
    neighbors = min(_CANDIDATES + 1, len(positions))
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    background = np.ones(len(positions))
    for mirrored in (False, True):
        steps.go_to((1 + mirrored) / 3)
        queries = _describe(thumbnails[:, :, ::-1]) if mirrored else descriptors
        distances, found = index.kneighbors(queries, n_neighbors=neighbors)
        near = (distances < _CANDIDATE_DISTANCE) & (found != np.arange(len(positions))[:, None])
        pairs = np.argwhere(near)
        pairs = np.stack([pairs[:, 0], found[near]], 1)
        aligned = _aligned_distances(thumbnails, pairs, mirrored, steps)
        if not mirrored:
            background = _background(pairs[:, 0], aligned, len(positions))
        for (one, other), distance in zip(pairs.tolist(), aligned.tolist(), strict=True):
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
                    lambda position: _gray(dataset, position, _DETAILED_SIDE, at_least=_DETAILED_SIDE),
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
        placement = np.tile(np.array([1, 0, 0], dtype=np.float32), (len(rows), 1))
        small = _halved(moving), _halved(fixed)
        placement = _align(_halved(small[0]), _halved(small[1]), placement, steps=4)
        placement = _align(*small, placement=placement, steps=3)
        placement = _align(moving, fixed, placement, steps=3)
        by_row, by_column, inside = _sampling(placement, _DETAILED_SIDE)
        one, other = (
            each - gaussian_filter(each, (0, _DETAIL_BLUR, _DETAIL_BLUR))
            for each in (by_row @ moving @ by_column, fixed)
        )
        agree[start + np.array(rows)] = _correlation(one, other, inside == 1) >= _LEAST_DETAIL_CORRELATION
    return agree


class _Steps:
    """Tells how far the search has come."""

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


def _thumbnails(dataset: ImageDataset, positions: NDArray[np.int64], steps: _Steps) -> NDArray[np.uint8]:
    """(N, S, S) gray; of images that are too small or cannot be read, zeros."""
    blank = np.zeros((_SIDE, _SIDE), dtype=np.uint8)

    def thumbnail(position: int) -> NDArray[np.uint8]:
        image = _gray(dataset, position, _SIDE, at_least=LEAST_SIDE)
        return blank if image is None else image

    found = np.empty((len(positions), _SIDE, _SIDE), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(positions), _PAIRS_AT_ONCE):
            part = positions[start : start + _PAIRS_AT_ONCE].tolist()
            for row, image in enumerate(pool.map(thumbnail, part), start):
                found[row] = image
            steps.go(len(part))
    return found


def _gray(dataset: ImageDataset, position: int, side: int, *, at_least: int) -> NDArray[np.uint8] | None:
    """(S, S) an image in gray; None if it has fewer pixels a side than that, or cannot be read."""
    try:
        image = dataset.open_reduced(position, side, channels=1)
    except ImageDecodeError:
        return None
    if min(image.size) < at_least:
        return None
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


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
    thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64], mirrored: bool, steps: _Steps
) -> NDArray[np.float32]:
    """(P,) how far the two images of each pair are apart once the first is laid on the second."""

    def distance(start: int) -> NDArray[np.float32]:
        part = pairs[start : start + _PAIRS_AT_ONCE]
        moving, fixed = (thumbnails[part[:, side]].astype(np.float32) for side in (0, 1))
        if mirrored:
            moving = moving[:, :, ::-1]
        placement = np.tile(np.array([1, 0, 0], dtype=np.float32), (len(moving), 1))
        placement = _align(_halved(moving), _halved(fixed), placement, steps=4)
        placement = _align(moving, fixed, placement, steps=2)
        return _distance(moving, fixed, placement)

    found = [np.empty(0, dtype=np.float32)]
    with ThreadPoolExecutor(4) as pool:
        for distances in pool.map(distance, range(0, len(pairs), _PAIRS_AT_ONCE)):
            found.append(distances)
            steps.go(steps.total / 3 * len(distances) / len(pairs))
    return np.concatenate(found)


def _align(
    moving: NDArray[np.float32], fixed: NDArray[np.float32], placement: NDArray[np.float32], *, steps: int
) -> NDArray[np.float32]:
    """Gauss-Newton steps towards the scale and shift at which the moving images equal the fixed ones.

    Args:
        moving: (P, S, S).
        fixed: (P, S, S).
        placement: (P, 3): scale, shift to the right, shift down; the image reaches from -1 to 1.
        steps: How many.

    Returns:
        The placement, improved.
    """
    count, side, _ = moving.shape
    across = _centers(side)
    down_slope, right_slope = (slope * (side / 2) for slope in np.gradient(moving, axis=(1, 2)))
    for _ in range(steps):
        rows, columns, inside = _sampling(placement, side)
        warped = rows @ moving @ columns
        right, down = rows @ right_slope @ columns, rows @ down_slope @ columns
        larger = right * across[None, None, :] + down * across[None, :, None]
        # fixed ≈ gain · (warped + slopes · change of placement) + offset, solved by least squares.
        terms = np.stack([warped, larger, right, down, np.ones_like(warped)], -1).reshape(count, -1, 5)
        weighted = terms * inside.reshape(count, -1, 1)
        normal = weighted.transpose(0, 2, 1) @ terms
        ridge = 1e-5 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-6
        moments = weighted.transpose(0, 2, 1) @ fixed.reshape(count, -1, 1)
        solution = np.linalg.solve(normal.astype(np.float64) + ridge * np.eye(5), moments)[..., 0]
        gain = np.maximum(np.abs(solution[:, :1]), 0.2)
        change = np.clip(solution[:, 1:4] / gain, -0.1, 0.1).astype(np.float32)
        placement = np.clip(placement + change, (0.8, -0.25, -0.25), (1.25, 0.25, 0.25)).astype(np.float32)
    return placement


def _distance(
    moving: NDArray[np.float32], fixed: NDArray[np.float32], placement: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(P,) between the aligned images at half their side, each with mean 0 and length 1 where both are."""
    rows, columns, inside = _sampling(placement, moving.shape[1])
    correlation = _correlation(_halved(rows @ moving @ columns), _halved(fixed), _halved(inside) == 1)
    distance: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * correlation, 0))
    return distance


def _correlation(
    one: NDArray[np.floating], other: NDArray[np.floating], common: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """(P, S, S), (P, S, S) → (P,) Pearson's correlation over the pixels that count."""
    area = np.maximum(common.sum((1, 2), keepdims=True), 1)

    def centered(images: NDArray[np.floating]) -> NDArray[np.floating]:
        shared = images * common
        return (shared - shared.sum((1, 2), keepdims=True) / area) * common

    one, other = centered(one), centered(other)
    lengths = np.sqrt((one**2).sum((1, 2)) * (other**2).sum((1, 2)))
    correlation: NDArray[np.floating] = (one * other).sum((1, 2)) / np.maximum(lengths, 1e-6)
    return correlation


def _sampling(
    placement: NDArray[np.float32], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Matrices that resample rows (P, S, S) and columns (P, S, S) bilinearly, and where that is inside."""
    across = _centers(side)
    x = placement[:, :1] * across + placement[:, 1:2]
    y = placement[:, :1] * across + placement[:, 2:3]
    inside = (np.abs(y) <= 1)[:, :, None] & (np.abs(x) <= 1)[:, None, :]
    rows, columns = (
        np.maximum(
            1 - np.abs(np.clip((at + 1) * (side / 2) - 0.5, 0, side - 1)[..., None] - np.arange(side)), 0
        )
        for at in (y, x)
    )
    return (
        rows.astype(np.float32),
        columns.transpose(0, 2, 1).astype(np.float32),
        inside.astype(np.float32),
    )


def _centers(side: int) -> NDArray[np.float32]:
    """Where the centers of a row's pixels lie between -1 and 1."""
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def _halved(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """(P, S, S) → (P, S/2, S/2), the means of 2×2 pixels."""
    count, side, _ = images.shape
    return images.reshape(count, side // 2, 2, side // 2, 2).mean((2, 4))
