"""Images that show signals and volumes: three planes of a volume, the curves of a signal.

L length, D depth, H height, W width, C channels; h height, w width of such an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skipnets.data.decoding import Source
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.volume_files import Volume

__all__ = ["curve_image", "curve_map", "planes_image", "planes_map", "shown_image", "shown_values"]

_LONGEST = 192  # pixels of a volume's longest side
_GAP = 6
_TEXT = 90, 56  # pixels of the text beside the planes
_WIDTH, _HEIGHT, _BAND = 400, 240, 24  # pixels of a signal, and of each of its channels at least
_SCALE = 2  # curves are drawn larger and reduced, for smooth lines
_MOST_POINTS = 10_000
_SIDES = ("depth", "height", "width")


def shown_image(preprocessing: Preprocessing, source: Source) -> Image.Image:
    """An image as people are shown it; of a volume three planes through its middle, of a signal its curves.

    Args:
        preprocessing: Of the model that it is for.
        source: As `Classifier.predict` takes it.

    Raises:
        ImageDecodeError: It cannot be read.
    """
    if preprocessing.dims == 2:
        return preprocessing.shown(preprocessing.open(source))
    volume = preprocessing.open_volume(source)
    values = shown_values(preprocessing, volume)
    if preprocessing.dims == 1:
        return curve_image(values)
    return planes_image(values, volume.spacing, [side // 2 for side in values.shape])


def shown_values(preprocessing: Preprocessing, volume: Volume) -> NDArray[np.float32]:
    """Values from 0 to 1 as the model's window shows them: (L, C), or (D, H, W), the mean over channels."""
    values = preprocessing.windowed_volume(volume) / np.float32(255)
    return values.mean(-1) if preprocessing.dims == 3 else values


def planes_image(values: NDArray[np.float32], spacing: Sequence[float], center: Sequence[int]) -> Image.Image:
    """The three planes of a volume through a place: across its depth, its height and its width; in gray.

    Args:
        values: (D, H, W) from 0 to 1.
        spacing: The distance between neighbors along each axis, by which planes have their proportions.
        center: The place, a position along each axis.
    """
    gray = _arranged(values, spacing, center, Image.Resampling.BILINEAR, around=1.0)
    image = Image.fromarray(np.rint(255 * gray.clip(0, 1)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    [*_, (left, top)] = _corners(_pixels(values.shape, spacing))
    for line, (name, place) in enumerate(zip(_SIDES, center, strict=True)):
        draw.text((left + 4, top + 4 + 16 * line), f"{name} {place}", 0, font=ImageFont.load_default(13))
    return image


def planes_map(
    values: NDArray[np.float32], spacing: Sequence[float], center: Sequence[int]
) -> NDArray[np.float32]:
    """(h, w) the same planes of a map (D, H, W), where `planes_image` has them; 0 elsewhere."""
    return _arranged(values, spacing, center, Image.Resampling.BILINEAR, around=0.0)


def _arranged(
    values: NDArray[np.float32],
    spacing: Sequence[float],
    center: Sequence[int],
    resampling: Image.Resampling,
    *,
    around: float,
) -> NDArray[np.float32]:
    """Across the depth at the top left, across the height below it, across the width at the top right."""
    depth, height, width = pixels = _pixels(values.shape, spacing)
    # Depth runs upwards: from foot to head.
    planes = (
        (values[center[0]], (height, width)),
        (values[::-1, center[1]], (depth, width)),
        (values[::-1, :, center[2]], (depth, height)),
    )
    bottom = max(height + _GAP + depth, max(depth, height) + _GAP + _TEXT[1])
    canvas = np.full((bottom, width + _GAP + max(height, _TEXT[0])), around, np.float32)
    for (plane, (rows, columns)), (left, top) in zip(planes, _corners(pixels)[:3], strict=True):
        plain = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
        canvas[top : top + rows, left : left + columns] = np.asarray(
            plain.resize((columns, rows), resampling)
        )
    return canvas


def _pixels(sides: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The pixels of each side."""
    extents = [side * step for side, step in zip(sides, spacing, strict=True)]
    depth, height, width = (max(round(extent * _LONGEST / max(extents)), 1) for extent in extents)
    return depth, height, width


def _corners(pixels: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Left and top of the three planes, and of the text."""
    depth, height, width = pixels
    right = width + _GAP
    return [(0, 0), (0, height + _GAP), (right, 0), (right, max(depth, height) + _GAP)]


def curve_image(values: NDArray[np.float32]) -> Image.Image:
    """The curves of a signal (L, C) with values from 0 to 1, one channel below the other; in gray."""
    channels = values.shape[1]
    band = max(_HEIGHT // channels, _BAND)
    scale = _SCALE
    image = Image.new("L", (scale * _WIDTH, scale * band * channels), 255)
    draw = ImageDraw.Draw(image)
    for channel in range(channels):
        low, high = float(values[:, channel].min()), float(values[:, channel].max())
        points = _outline(values[:, channel])
        x = (np.arange(len(points)) + 0.5) * scale * _WIDTH / len(points)
        level = (points - low) / ((high - low) or 1)
        y = scale * band * (channel + 0.94 - 0.88 * level)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=0, width=scale + 1, joint="curve")
    return image.resize((_WIDTH, band * channels), Image.Resampling.LANCZOS)


def _outline(curve: NDArray[np.float32]) -> NDArray[np.float32]:
    """The points of a curve (L,); of a long one the lowest and the highest of each part that is a pixel."""
    parts = _SCALE * _WIDTH
    if len(curve) <= _MOST_POINTS:
        return curve
    starts = np.linspace(0, len(curve), parts, endpoint=False).astype(np.int64)
    ends = np.minimum.reduceat(curve, starts), np.maximum.reduceat(curve, starts)
    return np.stack(ends, axis=1).ravel()


def curve_map(values: NDArray[np.float32], height: int) -> NDArray[np.float32]:
    """(h, w) a map (L,) behind the curves of `curve_image`.

    Args:
        values: (L,).
        height: Of the image, in pixels.
    """
    line = Image.fromarray(np.ascontiguousarray(values[None], dtype=np.float32))
    row = np.asarray(line.resize((_WIDTH, 1), Image.Resampling.BILINEAR))
    return np.repeat(row, height, axis=0)
