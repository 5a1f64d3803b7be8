"""The one way from an image to a model's input: in validation, evaluation, prediction and serving.

Pillow and numpy only, so that predicting needs no torch. N batch, C channels, H height, W width; of signals L
length, of volumes D depth.

Images of 8 bits stay uint8 until they are normalized. Others are windowed: a range of their values becomes
float32 from 0 (black) to 255 (white), and what follows is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.axes import INPUTS
from skipnets.data.decoding import (
    MAX_PIXELS,
    Box,
    ImageDecodeError,
    Source,
    open_image,
    open_region,
    read_values,
    source_name,
    window_values,
)
from skipnets.data.listing import channel_word
from skipnets.data.raster import Values, WindowedImage
from skipnets.data.volume_files import Volume, read_volume
from skipnets.data.volume_fitting import AxisFit, centered, fit_axes, fit_volume
from skipnets.errors import UserError, listed, near_matches

__all__ = ["FITS", "INTERPOLATIONS", "VOI", "ImageDecodeError", "Preprocessing"]

Window = Sequence[float] | Sequence[Sequence[float]] | Literal["voi"]
# As a window: that of each DICOM file itself (its "values of interest").
VOI: Literal["voi"] = "voi"

FITS = ("pad", "crop", "stretch", "center")
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}

# ImageNet's statistics, which published weights expect; for gray, the means over the three channels.
_MEAN = {1: (0.449,), 3: (0.485, 0.456, 0.406)}
_STD = {1: (0.226,), 3: (0.229, 0.224, 0.225)}

_MOST_CHANNELS = 4096
# Of a volume, which is windowed in parts.
_VALUES_AT_ONCE = 2**18
# Beyond these, inputs leave the range of the formats that networks compute in.
_SMALLEST_STD, _LARGEST = 1e-5, 1e4
# A window's least width is against its larger end, as far as float64 tells apart: in SI units 1e-9 is usual.
_NARROWEST_WINDOW, _LARGEST_VALUE = 1e-13, 1e30


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input. It travels inside the model file.

    With `fit="crop"` the result equals, bit for bit, torchvision's Resize, CenterCrop, ToTensor and
    Normalize on a PIL image.

    Args:
        size: Height and width of the input in pixels; one number for a square. `(L,)` is the length of
            signals, `(D, H, W)` are the sides of volumes.
        fit: What happens to an image of another shape. "pad": all of it is seen, centered on the mean
            color. "crop": the middle is seen. "stretch": all of it is seen, distorted. "center": the middle
            is seen at its own resolution, cut or padded; for signals, whose rate is to stay.
        crop_fraction: For "crop", which share of the resized image's shorter side is kept, in (0, 1]:
            224/256 = 0.875 in torchvision's ImageNet evaluation.
        channels: 1 (gray), 3 (RGB), or any number of bands.
        mean: Per channel, in units where white is 1; ImageNet's by default.
        std: Per channel, as `mean`.
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos"; all but "nearest" are antialiased.
        window: Which values are shown black and white, (low, high) or one pair a channel, in the units of the
            images' files; or "voi", each DICOM file's own. None for images of 8 bits, taken as they are.
        bits: Of the images that it was made for. With more than 8, an image of 8 bits is taken as it is: what
            somebody windowed before.
        shown_channels: Of several bands, the three that are shown as red, green and blue; from 0.

    Raises:
        UserError: A value is impossible.
    """

    size: tuple[int, ...]
    fit: str = "pad"
    crop_fraction: float = 1.0
    channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    window: tuple[tuple[float, float], ...] | Literal["voi"] | None = None
    bits: int = 8
    shown_channels: tuple[int, int, int] = (0, 1, 2)

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        fit: str = "pad",
        crop_fraction: float = 1.0,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str = "bilinear",
        window: Window | None = None,
        bits: int = 8,
        shown_channels: Sequence[int] = (0, 1, 2),
    ) -> None:
        sides = _sides(size)
        if not isinstance(fit, str) or fit not in FITS:
            raise UserError(f"fit={fit!r}: must be one of {', '.join(FITS)}{near_matches(str(fit), FITS)}")
        if not (_is_number(crop_fraction) and 0 < crop_fraction <= 1):
            raise UserError(f"crop_fraction={crop_fraction}: must be above 0 and at most 1")
        if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
            raise UserError(f"channels={channels}: must be 1 (gray), 3 (RGB) or a number of bands")
        if channels > _MOST_CHANNELS:
            raise UserError(f"channels={channels}: must be at most {_MOST_CHANNELS:,}")
        if not isinstance(bits, int) or isinstance(bits, bool) or bits < 1:
            raise UserError(f"bits={bits}: must be at least 1")
        if window is None and channels not in (1, 3):
            window = (0, 255)  # bands are not what Pillow's 8-bit images hold
        if window is None and bits > 8:
            raise UserError(f"window: must be given for images of {bits} bits")
        if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation={interpolation!r}: must be one of {', '.join(INTERPOLATIONS)}"
                f"{near_matches(str(interpolation), INTERPOLATIONS)}"
            )
        values: dict[str, Any] = {
            "size": sides,
            "fit": fit,
            "crop_fraction": float(crop_fraction),
            "channels": channels,
            "mean": _per_channel("mean", _of(_MEAN, channels) if mean is None else mean, channels),
            "std": _per_channel("std", _of(_STD, channels) if std is None else std, channels),
            "interpolation": interpolation,
            "window": _checked_window(window, channels),
            "bits": bits,
            "shown_channels": _checked_shown(shown_channels, channels),
        }
        if min(values["std"]) <= 0:
            raise UserError(f"std={values['std']}: must be positive")
        if min(values["std"]) < _SMALLEST_STD or max(map(abs, values["mean"] + values["std"])) > _LARGEST:
            raise UserError(
                f"mean={values['mean']}, std={values['std']}: must be in units where white is 1, "
                f"std at least {_SMALLEST_STD:g}, both at most {_LARGEST:g}"
            )
        if len(sides) != 2 and window == VOI:
            raise UserError(f"size={sides}: must be of images for the window of a file (voi)")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def dims(self) -> int:
        """Spatial axes: 1 of signals, 2 of images, 3 of volumes."""
        return len(self.size)

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of the input.

        Raises:
            UserError: If the input is a signal or a volume.
        """
        self.require_images("images")
        height, width = self.size
        return height, width

    def require_images(self, what: str) -> None:
        """Refuse what is made for images.

        Args:
            what: What is made for them, as the message's beginning.

        Raises:
            UserError: If the input is a signal or a volume.
        """
        if self.dims != 2:
            raise UserError(f"{what}: takes models of images, not of {INPUTS[self.dims]}, as this one is")

    @property
    def pixel_type(self) -> Literal["uint8", "float32"]:
        """The type of pixels before they are normalized."""
        return "uint8" if self.window is None else "float32"

    def open(self, source: Source, *, max_pixels: int | None = None) -> Image.Image | WindowedImage:
        """Read an image upright and with this preprocessing's channels, windowed where it windows.

        Args:
            source: As for `skipnets.data.open_image`; where there is a window, arrays of any numbers, too.
            max_pixels: The most that is decoded. Default: what the source says, or `MAX_PIXELS`.

        Raises:
            ImageDecodeError: It cannot be read.
            UserError: The input is a signal or a volume.
        """
        self.require_images("images")
        if self.window is None:
            return open_image(source, self.channels, max_pixels=max_pixels)
        if isinstance(source, WindowedImage):
            return source
        values = read_values(source, self.channels, as_displayed=self.window == VOI, max_pixels=max_pixels)
        if values.bits <= 8 and (self.bits > 8 or self.window == VOI):
            shown = values.array.astype(np.float32)
            # A file's own window makes 8 bits of any; only where there is another are they of another source.
            return WindowedImage(
                255 - shown if values.white_is_low else shown, as_displayed=self.window != VOI
            )
        if values.array.dtype.kind == "f" and not np.isfinite(values.array).any():
            raise ImageDecodeError(f"{source_name(source)}: has no finite value")
        assert not isinstance(self.window, str)
        low, high = np.array(self.window, dtype=np.float64).T
        return WindowedImage(window_values(values, low, high))

    def unwindowed(self, levels: NDArray[np.uint8]) -> NDArray[Any]:
        """Values that the window shows as these levels, (…, C) or (…) of one channel: for made-up images."""
        if self.window is None or isinstance(self.window, str):
            return levels
        low, high = np.array(self.window, dtype=np.float64).T
        return (low + levels / 255 * (high - low)).astype(np.float32)

    def shown(self, image: Image.Image | WindowedImage) -> Image.Image:
        """An opened image in 8 bits, for people: gray or in color, or three of its bands."""
        return image if isinstance(image, Image.Image) else image.shown(self.shown_channels)

    def geometry(self, width: int, height: int) -> Box:
        """Which box of a width × height image the input shows: to lay a map of the input over the image.

        Returns:
            (left, top, right, bottom) in the image's pixels, the input's outer edges. With "pad" it
            reaches beyond the image where the input shows padding.
        """
        resized_width, resized_height, left, top = self._layout(width, height)
        x_scale, y_scale = width / resized_width, height / resized_height
        return (
            left * x_scale,
            top * y_scale,
            (left + self.size[1]) * x_scale,
            (top + self.size[0]) * y_scale,
        )

    def pixels(self, image: Source) -> NDArray[Any]:
        """The image at the input's size, before normalization: (H, W, C), from 0 to 255, of `pixel_type`.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        if self.dims != 2:
            return self.fitted_volume(self.open_volume(image))
        opened = self.open(image)
        self._check_layout(*opened.size)
        if isinstance(opened, WindowedImage):
            return self._fitted_values(opened)
        return self._fitted(opened, size=opened.size)

    def training_pixels(self, image: Source) -> NDArray[Any]:
        """As `pixels`, of a large JPEG in a fraction of the time: for training, where that is most of it.

        It is decoded at 1/2, 1/4 or 1/8 of its size where that is still twice as fine as the input (see
        `open_region`); pixels differ by less than a gray level on average.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        keeps_pixels = self.fit == "center" or self.interpolation == "nearest"
        if self.dims != 2 or self.window is not None or keeps_pixels:
            return self.pixels(image)
        sizes: list[tuple[int, int]] = []

        def whole(width: int, height: int) -> Box:
            self._check_layout(width, height)
            sizes.append((width, height))
            return 0, 0, width, height

        height, width = (math.ceil(side / self.crop_fraction) for side in self.size)
        opened, (left, top, right, bottom) = open_region(
            image, whole, size=(height, width), channels=self.channels, luma=False
        )
        box = left, top, min(right, opened.width), min(bottom, opened.height)
        return self._fitted(opened, size=sizes[0], box=box)

    def _check_layout(self, width: int, height: int) -> None:
        if self.resized_pixels(width, height) > MAX_PIXELS:
            rows, columns = self.height_width
            raise ImageDecodeError(
                f"image of {height}×{width} pixels: too elongated to be cut to {rows}×{columns}"
            )

    def resized_pixels(self, width: int, height: int) -> int:
        """How many pixels an image has after the resize, of which the input may be a small part."""
        resized_width, resized_height, _, _ = self._layout(width, height)
        return resized_width * resized_height

    def _fitted(
        self, image: Image.Image, *, size: tuple[int, int], box: Box | None = None
    ) -> NDArray[np.uint8]:
        """An image of 8 bits at the input's size.

        Args:
            image: The image, which may have been reduced as it was decoded.
            size: Its width and height without that.
            box: Where in it the image lies; None if it is all of it.
        """
        height, width = self.height_width
        resized_width, resized_height, left, top = self._layout(*size)
        if image.size != (resized_width, resized_height):
            image = image.resize((resized_width, resized_height), INTERPOLATIONS[self.interpolation], box)
        if left < 0 or top < 0:
            canvas = Image.new(image.mode, (width, height), self._padding_color())
            canvas.paste(image, (-left, -top))
            image = canvas
        elif image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image).reshape(height, width, self.channels)

    def _fitted_values(self, image: WindowedImage) -> NDArray[np.float32]:
        """A windowed image at the input's size."""
        height, width = self.height_width
        resized_width, resized_height, left, top = self._layout(*image.size)
        values = resize_values(image.values, (resized_width, resized_height), self.interpolation)
        canvas = np.empty((height, width, self.channels), dtype=np.float32)
        canvas[...] = 255 * np.clip(np.array(self.mean, dtype=np.float32), 0, 1)
        part = values[max(top, 0) : top + height, max(left, 0) : left + width]
        x, y = max(-left, 0), max(-top, 0)
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
        return canvas

    def planes(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(N, H, W, C) pixels → (N, C, H, W), for a network that normalizes by itself."""
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 1))

    def normalize(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(N, H, W, C) pixels → (N, C, H, W) float32 input."""
        inputs = np.moveaxis(pixels, -1, 1).astype(np.float32, order="C")
        channel = (-1, *[1] * self.dims)
        inputs /= np.float32(255)
        inputs -= np.asarray(self.mean, dtype=np.float32).reshape(channel)
        inputs /= np.asarray(self.std, dtype=np.float32).reshape(channel)
        return inputs

    def __call__(self, image: Source) -> NDArray[np.float32]:
        """One image → (C, H, W) float32 input."""
        return self.normalize(self.pixels(image)[None])[0]

    def batch(self, images: Sequence[Source]) -> NDArray[np.float32]:
        """N images → (N, C, H, W) float32 input."""
        pixels = np.empty((len(images), *self.size, self.channels), dtype=self.pixel_type)
        for row, image in zip(pixels, images, strict=True):
            row[...] = self.pixels(image)
        return self.normalize(pixels)

    def summary(self) -> str:
        """Size, channels, fit and window in a few words."""
        words = ["×".join(map(str, self.size))]
        words += [channel_word(self.channels), self.fit] if self.dims == 2 else [self.fit]
        if self.window == VOI:
            words.append("each file's own window")
        elif self.window is not None:
            pairs = dict.fromkeys(f"{low:g} to {high:g}" for low, high in self.window)
            words.append(f"window {listed(pairs, 3)}")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; those of windows and bands only where they differ from 8 bits."""
        values = asdict(self)
        for name, plain in (("window", None), ("bits", 8), ("shown_channels", (0, 1, 2))):
            if values[name] == plain:
                del values[name]
        return {name: _as_lists(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that are missing take their defaults.

        Raises:
            UserError: A field is unknown or its value impossible.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"preprocessing has no field {name!r}{near_matches(name, known)}")
        if "size" not in values:
            raise UserError("preprocessing lacks the field 'size': height and width of the input")
        return cls(**values)

    def _layout(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height after the resize, and where the input's left and top edge lie in that."""
        input_height, input_width = self.height_width
        if self.fit == "stretch":
            return input_width, input_height, 0, 0
        if self.fit == "center":
            return width, height, centered(width, input_width), centered(height, input_height)
        if self.fit == "crop":
            # Rounding is torchvision's: Resize truncates the longer side, CenterCrop rounds half to even.
            target_width = round(input_width / self.crop_fraction)
            target_height = round(input_height / self.crop_fraction)
            if width * target_height <= height * target_width:
                resized_width, resized_height = target_width, int(target_width * height / width)
            else:
                resized_width, resized_height = int(target_height * width / height), target_height
            resized_width, resized_height = max(resized_width, input_width), max(resized_height, input_height)
            left = round((resized_width - input_width) / 2)
            top = round((resized_height - input_height) / 2)
            return resized_width, resized_height, left, top
        scale = min(input_width / width, input_height / height)
        resized_width, resized_height = max(round(width * scale), 1), max(round(height * scale), 1)
        return (
            resized_width,
            resized_height,
            (resized_width - input_width) // 2,
            (resized_height - input_height) // 2,
        )

    def open_volume(self, source: Source | Volume, *, max_values: int | None = None) -> Volume:
        """Read a signal or a volume with this preprocessing's channels; its values are not windowed yet.

        Args:
            source: As for `skipnets.data.volume_files.read_volume`, or what that read.
            max_values: Likewise.

        Raises:
            ImageDecodeError: It cannot be read, or holds other values than those of the training.
            UserError: The input is an image.
        """
        if isinstance(source, Volume):
            return source
        if self.dims == 2:
            raise UserError("volumes: takes models of signals or volumes, not of images, as this one is")
        volume = read_volume(source, self.dims, self.channels, max_values=max_values)
        if self.window is None and volume.array.dtype != np.uint8:
            raise ImageDecodeError(
                f"{source_name(source)}: must be uint8, as the training's values were, not "
                f"{volume.array.dtype}"
            )
        return volume

    def volume_axes(self, sides: Sequence[int], spacing: Sequence[float]) -> list[AxisFit]:
        """How the axes of a signal or a volume become those of the input: what `geometry` is for images.

        Args:
            sides: (L,) or (D, H, W).
            spacing: The distance between neighbors along each axis.
        """
        return fit_axes(sides, spacing, self.size, self.fit, self.crop_fraction)

    def windowed_volume(self, volume: Volume) -> NDArray[np.float32]:
        """(…, C) values of a signal or a volume from 0 to 255, at its own size; 0 where there is none."""
        if self.window is None:
            return volume.array.astype(np.float32)
        low, high = np.array(self.window, dtype=np.float64).T
        shown = np.empty(volume.array.shape, dtype=np.float32)
        step = max(_VALUES_AT_ONCE * len(shown) // shown.size, 1)
        for start in range(0, len(shown), step):  # float64 in between takes twice the memory of all of it
            part = Values(array=volume.array[start : start + step], bits=volume.bits)
            shown[start : start + step] = window_values(part, low, high)
        return shown

    def fitted_volume(self, volume: Volume) -> NDArray[Any]:
        """A signal or volume at the input's size, (…, C): its values from 0 to 255, of `pixel_type`.

        Raises:
            ImageDecodeError: It is so elongated that it would be too large when it is resized.
        """
        try:
            fitted = fit_volume(
                self.windowed_volume(volume),
                self.volume_axes(volume.array.shape[:-1], volume.spacing),
                self.size,
                interpolation=INTERPOLATIONS[self.interpolation],
                padding=[255 * min(max(value, 0), 1) for value in self.mean],
            )
        except ValueError as error:
            raise ImageDecodeError(f"{INPUTS[self.dims].removesuffix('s')}: {error}") from error
        return fitted if self.window is not None else np.rint(fitted).astype(np.uint8)

    def _padding_color(self) -> int | tuple[int, ...]:
        color = tuple(min(max(round(255 * value), 0), 255) for value in self.mean)
        return color[0] if self.channels == 1 else color


def resize_values(
    values: NDArray[np.float32], size: tuple[int, int], interpolation: str
) -> NDArray[np.float32]:
    """(H, W, C) from 0 to 255 at another width and height: what Pillow does with 8 bits, but unrounded."""
    if values.shape[1::-1] == size:
        return values
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, INTERPOLATIONS[interpolation]))
        for plane in np.moveaxis(values, 2, 0)
    ]
    # Bicubic and Lanczos overshoot at edges.
    return np.stack(planes, axis=2).clip(0, 255)


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, tuple) else value


def _of(table: dict[int, tuple[float, ...]], channels: int) -> tuple[float, ...]:
    """The values of gray in every band where there are neither one nor three."""
    return table.get(channels, table[1] * channels)


def _checked_window(window: Any, channels: int) -> tuple[tuple[float, float], ...] | Literal["voi"] | None:
    if window is None or window == VOI:
        return cast(Literal["voi"] | None, window)
    try:
        flat = np.array(window, dtype=np.float64)
    except (TypeError, ValueError):
        flat = np.empty(0)
    pairs = flat.reshape(-1, 2) if flat.size in (2, 2 * channels) else np.empty((0, 2))
    sane = np.isfinite(pairs).all() and (abs(pairs) <= _LARGEST_VALUE).all()
    narrowest = np.maximum(_NARROWEST_WINDOW * abs(pairs).max(axis=1, initial=0), 1 / _LARGEST_VALUE)
    if not (len(pairs) and sane and (pairs[:, 1] - pairs[:, 0] >= narrowest).all()):
        each = f", or {channels} such pairs, one a channel" if channels > 1 else ""
        raise UserError(f"window={window}: must be two numbers, the lower one first{each}")
    every = pairs if len(pairs) > 1 else pairs.repeat(channels, 0)
    return tuple((float(low), float(high)) for low, high in every)


def _checked_shown(shown: Sequence[int], channels: int) -> tuple[int, int, int]:
    known = range(max(channels, 3))
    whole = not isinstance(shown, str) and all(
        isinstance(channel, int) and not isinstance(channel, bool) and channel in known for channel in shown
    )
    if len(shown) != 3 or not whole:
        raise UserError(f"shown_channels={tuple(shown)}: must be three of the {channels} channels")
    return shown[0], shown[1], shown[2]


def _sides(size: int | Sequence[int]) -> tuple[int, ...]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) not in (1, 2, 3) or not all(map(_is_whole, sides)) or min(sides) < 1:
        raise UserError(f"size={size!r}: must be a positive number of pixels, or height and width")
    if math.prod(sides) > MAX_PIXELS:
        raise UserError(f"size={size!r}: must be at most {MAX_PIXELS:,} pixels in all")
    return sides


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if isinstance(values, str) or not all(map(_is_number, values)):
        raise UserError(f"{name}={values!r}: must be {channels} numbers, one a channel")
    if len(values) != channels:
        raise UserError(f"{name}={tuple(values)}: must have {channels} values, one a channel")
    return tuple(float(value) for value in values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number, of Python or of NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
