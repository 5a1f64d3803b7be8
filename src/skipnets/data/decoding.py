"""From a file, bytes or an array to an upright image, whatever it was saved as: in 8 bits, or with all bits.

What Pillow does not read, modules of their own do: DICOM, NIfTI, TIFF files of many bands, NumPy's arrays.
H height, W width, C channels; sizes are in pixels; boxes are (left, top, right, bottom).
"""

from __future__ import annotations

import functools
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from skipnets.axes import INPUTS
from skipnets.data import arrays, dicom, nifti, tiff
from skipnets.data.iso_media import StoredSizes, is_heic, is_iso_image, stored_sizes
from skipnets.data.pillow_images import (
    converted,
    file_of,
    image_of_array,
    orientation_of,
    page_image,
    pillow_header,
    read_pillow_values,
    upright,
    whole_file,
)
from skipnets.data.pixel_budget import peak_bytes, raster_peak_bytes, webp_canvas, webp_peak_bytes
from skipnets.data.raster import (
    NO_SUCH_PAGE,
    Header,
    RasterFile,
    TooLargeError,
    Values,
    WindowedImage,
    check_size,
    fit_channels,
)
from skipnets.errors import UserError, install_command, one_line

# A few hundred bytes can declare an image that fills all memory. This is where Pillow begins to warn:
# a quarter of a gibibyte as RGB. Twice as large an image Pillow itself refuses.
MAX_PIXELS = 89_478_485


@dataclass(frozen=True)
class Member:
    """An image's file within a shard.

    Attributes:
        name: What it was called before.
        offset: Where in the shard it begins, in bytes.
        size: In bytes.
        crc: CRC-32 of its bytes, which costs a hundredth of decoding them.
    """

    name: str
    offset: int
    size: int
    crc: int

    def read(self, shard: Path) -> bytes:
        """Its bytes as they are in a shard now; fewer where that is cut short.

        Raises:
            OSError: The shard cannot be read.
        """
        with shard.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Page:
    """An image in a file, where its path alone does not say which, or how large it may be.

    Attributes:
        path: The file.
        number: The page, frame or slice, counted from 0; None for the one that stands for the file.
        max_pixels: The most that is decoded.
        member: Where the file is a shard, the file in it.
    """

    path: Path
    number: int | None = None
    max_pixels: int = MAX_PIXELS
    member: Member | None = None

    def __str__(self) -> str:
        name = str(self.path) if self.member is None else f"{self.path}:{self.member.name}"
        return name if self.number is None else f"{name}, page {self.number + 1}"

    def content(self) -> Path | bytes:
        """The file, or its bytes if it lies in a shard.

        Raises:
            ValueError: The shard holds other bytes.
        """
        if self.member is None:
            return self.path
        data = self.member.read(self.path)
        if len(data) != self.member.size or zlib.crc32(data) != self.member.crc:
            raise ValueError("its bytes in the shard are not those that were written")
        return data


Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Page | WindowedImage
Box = tuple[float, float, float, float]
JPEGDecoder = Callable[[bytes], NDArray[np.uint8]]
"""From a JPEG file's bytes to (H, W, 3)."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Files with these names are images; others are when their content is.
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", *arrays.SUFFIXES),
)
# Files with these names may hold several images.
PAGED_SUFFIXES = (".apng", ".gif", ".png", ".tif", ".tiff", ".webp", *dicom.SUFFIXES, *nifti.SUFFIXES)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")

# How much finer than its result a reduced JPEG is. With 1, crops are 4% less sharp than from the whole
# image, with 2 the difference is below 1% (Pillow's thumbnail() takes 2 as well).
_REDUCING_GAP = 2


class ImageDecodeError(UserError):
    """One image that cannot be read; the message names it and the reason."""


class TooManyPixelsError(ImageDecodeError):
    """One image, signal or volume that is larger than what is read."""


def none_decoded(count: int, first: ImageDecodeError | None, *, dims: int = 2) -> UserError:
    """An error for training images of which none can be decoded, with the reason of the first.

    Args:
        count: How many training images there are.
        first: What was raised for the first of those that were looked at.
        dims: Spatial axes: 3 of volumes, 1 of signals.
    """
    reason = "" if first is None else f"; the first: {first}"
    return UserError(f"data: none of the {count} training {INPUTS[dims]} looked at can be decoded{reason}")


def open_image(source: Source, channels: int | None = None, *, max_pixels: int | None = None) -> Image.Image:
    """Read an image as a person sees it: upright, 8 bits, gray or RGB.

    EXIF orientation is applied; transparency is laid on white; palettes and CMYK become RGB; an animation
    gives its first frame. 16 bits are divided by 257 and rounded (in color, Pillow's decoders keep the
    upper byte instead, which is less than one gray level away). `read_values` keeps all bits.

    Args:
        source: A path, a page of a file, the bytes of a file, an open binary file, a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.
        channels: 1 for gray (mode L), 3 for RGB, None for whichever of the two the image has.
        max_pixels: The most that is decoded; the header says how many there are. Default: what the page
            says, or `MAX_PIXELS`.

    Raises:
        ImageDecodeError: The source is missing, damaged, of another format, without a fixed range of
            values (32-bit, DICOM of more than 8 bits), or larger than `max_pixels`.
    """
    with _opened(source, max_pixels) as opened:
        return _read_image(opened, source, channels)


def read_values(
    source: Source, channels: int | None = None, *, as_displayed: bool = False, max_pixels: int | None = None
) -> Values:
    """Read an image with all the bits that it has, upright, in the units that its file gives them.

    Of DICOM files these are the modality's, such as Hounsfield units. PNG and TIFF files keep all 16 bits;
    color in JPEG 2000, AVIF and HEIC comes with 8.

    Args:
        source: As for `open_image`; arrays may be (H, W), (H, W, C) or (C, H, W) of any numbers.
        channels: How many; None for as many as the image has.
        as_displayed: Whether values of more than 8 bits are shown by the file's own window (DICOM's VOI LUT).
        max_pixels: As for `open_image`.

    Raises:
        ImageDecodeError: As for `open_image`, or its channels cannot become so many.
    """
    if isinstance(source, np.ndarray):
        with _one_error(source_name(source)):
            values = fit_channels(arrays.array_values(source, channels), channels)
            return _as_displayed(values) if as_displayed else values
    with _opened(source, max_pixels) as opened:
        if isinstance(opened, Image.Image):
            values = read_pillow_values(opened, _number(source), channels, max_pixels or _limit(source))
        elif as_displayed and isinstance(opened, dicom.DicomFile) and opened.header.bits > 8:
            values = Values(array=opened.read_as_displayed(_number(source)), bits=8)
        else:
            values = opened.read(_number(source), channels)
        values = fit_channels(values, channels)
        return _as_displayed(values) if as_displayed else values


def _as_displayed(values: Values) -> Values:
    """Values of 8 bits, which say themselves how they are shown."""
    if values.bits > 8:
        raise ValueError("has no display window of its own (DICOM's VOI LUT)")
    return values


def render_image(source: Source) -> Image.Image:
    """An image in 8 bits, gray or RGB, for people to look at and for comparing images.

    What has more than 8 bits is stretched, each image by its own 0.5 and 99.5 percentiles; of many channels,
    the first three are shown.

    Raises:
        ImageDecodeError: It cannot be read.
    """
    values = read_values(source)
    if values.bits <= 8 and values.array.shape[2] in (1, 3):
        return open_image(source)
    array = values.array[:, :, :3].astype(np.float64)
    finite = array[np.isfinite(array)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0, 1)
    shown = window_values(values, np.array([low]), np.array([high if high > low else low + 1]))
    return WindowedImage(shown).shown()


def window_values(values: Values, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float32]:
    """(H, W, C) from 0 (black, at `low` and below) to 255 (white); where there is no value, black.

    Args:
        values: Any image.
        low: (C,) or (1,) what is shown black.
        high: (C,) or (1,) what is shown white, above `low`.
    """
    array = values.array
    # float32 holds all numbers of 16 bits; the others may differ by less than it tells apart.
    exact = "float32" if array.dtype.itemsize <= 2 and array.dtype.kind in "iu" else "float64"
    shown: NDArray[np.floating] = array.astype(exact)
    shown -= low
    shown *= 255 / (high - low)
    np.clip(shown, 0, 255, out=shown)
    if values.white_is_low:
        np.subtract(255, shown, out=shown)
    if array.dtype.kind == "f":
        shown[np.isnan(shown)] = 0
    return shown.astype(np.float32, copy=False)


@overload
def open_region(
    source: Source,
    choose_box: Callable[[int, int], Box],
    *,
    size: tuple[int, int],
    channels: int,
    luma: bool = True,
) -> tuple[Image.Image, Box]: ...


@overload
def open_region(
    source: Source,
    choose_box: Callable[[int, int], Box],
    *,
    size: tuple[int, int],
    channels: int,
    decode_jpeg: JPEGDecoder | None,
    luma: bool = True,
) -> tuple[Image.Image | NDArray[np.uint8], Box]: ...


def open_region(
    source: Source,
    choose_box: Callable[[int, int], Box],
    *,
    size: tuple[int, int],
    channels: int,
    decode_jpeg: JPEGDecoder | None = None,
    luma: bool = True,
) -> tuple[Image.Image | NDArray[np.uint8], Box]:
    """Read only as much of an image as a crop of it needs: for training, where speed beats sharpness.

    The crop is chosen from the header alone. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size (the
    smallest that is still twice as fine as the result), which skips most of the inverse cosine transforms;
    other formats are decoded whole. Pixels differ slightly from decoding in full, so nothing but training
    uses this.

    Args:
        source: As for `open_image`.
        choose_box: Gets width and height of the upright image, returns the box to cut out.
        size: (H, W) that the box will be resized to.
        channels: 1 or 3.
        decode_jpeg: A faster decoder than Pillow's for JPEGs that are needed as they are: upright, whole, in
            RGB. What it refuses with a ValueError, Pillow gets.
        luma: Whether the luma of a color JPEG will do for gray, which saves decoding its colors: where these
            are strong, it is some levels off the gray of `open_image`.

    Returns:
        The image, upright and perhaps reduced, and where in it the box lies. What `decode_jpeg` gave comes
        as an array (H, W, 3).
    """
    with _opened(source) as opened:
        if isinstance(opened, Image.Image) and opened.format in ("JPEG", "MPO"):
            image = opened
        else:
            image = _read_image(opened, source, channels)
        orientation = orientation_of(image)
        width, height = image.size[::-1] if orientation >= 5 else image.size
        left, top, right, bottom = choose_box(width, height)
        reduction = max(min((right - left) / size[1], (bottom - top) / size[0]) / _REDUCING_GAP, 1)
        jpeg = image if isinstance(image, ImageFile.ImageFile) and image.format == "JPEG" else None
        as_it_is = image.mode == "RGB" and channels == 3 and orientation == 1 and reduction < 2
        if decode_jpeg is not None and jpeg is not None and jpeg.fp is not None and as_it_is:
            jpeg.fp.seek(0)
            data = jpeg.fp.read()
            with suppress(ValueError):  # Pillow may be more lenient, and it says what is wrong
                return decode_jpeg(data), (left, top, right, bottom)
        drafted = image.draft(
            "L" if channels == 1 and luma else None,
            (ceil(image.width / reduction), ceil(image.height / reduction)),
        )
        # The box that draft returns has fractional edges where the size is no multiple of the scale.
        scale = max(width, height) / max(drafted[1]) if drafted else 1.0
        reduced = converted(upright(image), channels)
        # Then the last row and column are in part beyond the image; turning may make them the first.
        x = reduced.width - width / scale if orientation in (2, 3, 6, 7) else 0
        y = reduced.height - height / scale if orientation in (3, 4, 7, 8) else 0
        return reduced, (left / scale + x, top / scale + y, right / scale + x, bottom / scale + y)


@contextmanager
def _opened(source: Source, max_pixels: int | None = None) -> Iterator[Image.Image | RasterFile]:
    """The image, header read; any failure inside the block becomes one ImageDecodeError."""
    limit = max_pixels or _limit(source)
    if isinstance(source, np.ndarray):
        with _one_error(source_name(source)):
            yield image_of_array(source)
    elif isinstance(source, WindowedImage):
        yield source.shown()
    elif isinstance(source, Image.Image):
        with _one_error(source_name(source)):
            yield source
    else:
        with _one_error(source_name(source), limit):
            if isinstance(source, str | os.PathLike | Page):
                _check_regular(Path(source.path if isinstance(source, Page) else source))
            file = source.content() if isinstance(source, Page) else source
            canvas = webp_canvas(_head(file, 30))
            if canvas is not None:
                check_size(canvas[0] * canvas[1], limit)
            if sizes := _stored_sizes(file):
                check_size(max(sizes.declared, sizes.coded), limit)
            with _open_file(file, limit) as opened:
                if isinstance(opened, Image.Image):
                    _turn_to(opened, _number(source) or 0)
                    check_size(opened.width * opened.height, limit)
                yield opened


def source_name(source: Source) -> str:
    """What an image is called in errors."""
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"image {source.size} {source.mode}")
    return str(source) if isinstance(source, str | os.PathLike | Page) else "image"


@contextmanager
def _one_error(name: str, limit: int = MAX_PIXELS) -> Iterator[None]:
    """Any failure inside the block becomes one ImageDecodeError."""
    try:
        yield
    except ImageDecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, TooLargeError) as error:
        more = "; --max-pixels allows more" if limit == MAX_PIXELS else ""
        raise TooManyPixelsError(
            f"{name}: larger than {limit:,} pixels, the most that is read{more}"
        ) from error
    except FileNotFoundError as error:
        raise ImageDecodeError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(f"{name}: not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ImageDecodeError(f"{name}: {one_line(error)}") from error


def _limit(source: Source) -> int:
    return source.max_pixels if isinstance(source, Page) else MAX_PIXELS


def _number(source: Source) -> int | None:
    return source.number if isinstance(source, Page) else None


@contextmanager
def _open_file(
    source: str | os.PathLike[str] | bytes | BinaryIO, max_pixels: int
) -> Iterator[Image.Image | RasterFile]:
    """The image in a file, recognized by its content; some formats where their extra is installed."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        # Pillow has one limit for the process. Raised, it still leaves ours, which is each image's own.
        Image.MAX_IMAGE_PIXELS = max_pixels
    with ExitStack() as stack:
        try:
            image = stack.enter_context(Image.open(file, formats=FORMATS))
            if not (isinstance(image, TiffImagePlugin.TiffImageFile) and _is_misread(image)):
                yield image
                return
        except UnidentifiedImageError:
            pass
        if isinstance(file, str | os.PathLike):
            file = stack.enter_context(Path(file).open("rb"))
        opened = _open_other(whole_file(file), max_pixels)
        if isinstance(opened, Image.Image):
            stack.enter_context(opened)  # closes its file; close() would take the pixels, too
        else:
            stack.callback(opened.close)
        yield opened


def _is_misread(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow sees one band of several, or a DICOM file that begins as a TIFF file does."""
    tags = image.tag_v2
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    alpha = image.mode in ("LA", "RGBA")
    bands = (photometric in (0, 1) and samples > 1 + alpha) or (photometric == 2 and samples > 4)
    return bands or dicom.is_dicom(_head(file_of(image)))


def _open_other(file: BinaryIO, max_pixels: int) -> Image.Image | RasterFile:
    """The image in a file that is in none of `FORMATS`."""
    head = _head(file)
    if dicom.is_dicom(head):
        return dicom.DicomFile(
            _for("medical", "DICOM file", dicom.can_read_dicom(), file), max_pixels=max_pixels
        )
    if nifti.is_nifti(head):
        return nifti.NiftiFile(
            _for("medical", "NIfTI file", nifti.can_read_nifti(), file), max_pixels=max_pixels
        )
    if arrays.is_array(head):
        return arrays.ArrayFile(file, max_pixels=max_pixels)
    if tiff.is_tiff(head):
        return tiff.TiffRaster(file, max_pixels=max_pixels)
    if is_heic(head):
        return Image.open(_for("heic", "HEIC image", can_read_heif(), file), formats=("HEIF",))
    raise UnidentifiedImageError


def _for(extra: str, kind: str, there: bool, file: BinaryIO) -> BinaryIO:
    """The file, from its start, if the extra that reads it is installed."""
    if not there:
        raise ValueError(f"a {kind}; to read it: {install_command(extra)}")
    file.seek(0)
    return file


def _turn_to(image: Image.Image, page: int) -> None:
    try:
        image.seek(page)
    except EOFError:
        raise ValueError(NO_SUCH_PAGE) from None


def _check_regular(path: Path) -> None:
    """Refuse what is no file: reading from a pipe may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"{kind}, not a file")


def _head(source: str | os.PathLike[str] | bytes | BinaryIO, size: int = 4096) -> bytes:
    """The first bytes of a file; all with -1."""
    if isinstance(source, bytes):
        return source if size < 0 else source[:size]
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as opened:
            return opened.read(size)
    source.seek(0)
    head = source.read(size)
    source.seek(0)
    return head


def _stored_sizes(source: str | os.PathLike[str] | bytes | BinaryIO) -> StoredSizes | None:
    """How large the images in an AVIF or HEIC file are; None for others."""
    if not is_iso_image(_head(source, 12)):
        return None
    return stored_sizes(_head(source, -1))


@functools.cache
def can_read_heif() -> bool:
    """Whether pillow-heif is there; it is registered with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


# Files with these names are images that an extra reads.
EXTRA_OF_SUFFIX = {
    **dict.fromkeys(HEIF_SUFFIXES, "heic"),
    **dict.fromkeys((*dicom.SUFFIXES, *nifti.SUFFIXES), "medical"),
}


def can_read(suffix: str) -> bool:
    """Whether the extra that reads files of this name is there."""
    if suffix in dicom.SUFFIXES:
        return dicom.can_read_dicom()
    return nifti.can_read_nifti() if suffix in nifti.SUFFIXES else can_read_heif()


def is_image(source: Source) -> bool:
    """Whether a file's content is an image in a format that can be read, whatever its name and size."""
    try:
        with _opened(source):
            return True
    except TooManyPixelsError:
        return True
    except ImageDecodeError:
        return False


def count_pages(source: Source) -> int:
    """How many pages or frames a file has; 1 where it cannot be read."""
    try:
        with _opened(source) as opened:
            return int(getattr(opened, "n_frames", 1)) if isinstance(opened, Image.Image) else opened.pages
    except ImageDecodeError:
        return 1


def _read_image(opened: Image.Image | RasterFile, source: Source, channels: int | None) -> Image.Image:
    """An opened image in mode L or RGB."""
    if isinstance(opened, Image.Image):
        return converted(upright(opened), channels)
    return page_image(opened, _number(source), channels)


def read_header(source: Source) -> Header:
    """Read an image's header, without decoding its pixels.

    Raises:
        ImageDecodeError: There is no image in a known format.
    """
    if isinstance(source, np.ndarray):
        with _one_error(source_name(source)):
            return arrays.array_header(source)
    with _opened(source) as image:
        if not isinstance(image, Image.Image):
            return image.header
        return pillow_header(image)


def decoding_bytes(source: Source, *, max_pixels: int = MAX_PIXELS, windowed: bool = False) -> int:
    """The most memory that `open_image` takes for an image, in bytes, from its header alone.

    Args:
        source: As for `open_image`.
        max_pixels: Likewise.
        windowed: Whether it is read with all of its bits (`read_values`) and windowed.

    Raises:
        ImageDecodeError: There is no image in a known format, or it is larger than `max_pixels`.
    """
    if isinstance(source, bytes) or hasattr(source, "read"):
        canvas = webp_canvas(_head(cast("bytes | BinaryIO", source), 30))
        if canvas is not None and canvas[0] * canvas[1] <= max_pixels:
            return webp_peak_bytes(*canvas)
    if windowed and isinstance(source, np.ndarray):
        return raster_peak_bytes(read_header(source))
    with _opened(source, max_pixels) as opened:
        if not isinstance(opened, Image.Image):
            return raster_peak_bytes(opened.header)
        header = pillow_header(opened)
        file = source.content() if isinstance(source, Page) else source
        sizes = None if isinstance(file, Image.Image | np.ndarray | WindowedImage) else _stored_sizes(file)
        return peak_bytes(opened, sizes) + (raster_peak_bytes(header) if windowed else 0)


def declared_size(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as the header says, perhaps before the image is turned upright.

    Raises:
        ImageDecodeError: There is no image in a known format, or it is larger than `max_pixels`.
    """
    if isinstance(source, np.ndarray):
        header = read_header(source)
        return header.width, header.height
    if isinstance(source, bytes) or hasattr(source, "read"):
        canvas = webp_canvas(_head(cast("bytes | BinaryIO", source), 30))
        if canvas is not None and canvas[0] * canvas[1] <= max_pixels:
            return canvas
    with _opened(source, max_pixels) as opened:
        return opened.size if isinstance(opened, Image.Image) else (opened.header.width, opened.header.height)


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of an image, upright.

    Raises:
        ImageDecodeError: It cannot be read.
    """
    with _opened(source) as opened:
        if isinstance(opened, Image.Image):
            return upright(opened).size
        return opened.header.width, opened.header.height
