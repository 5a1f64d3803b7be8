"""From a file, bytes or an array to an upright 8-bit image, whatever it was saved as.

Everything here is Pillow and numpy. Sizes are in pixels; boxes are (left, top, right, bottom).
"""

from __future__ import annotations

import functools
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from skipnets.data.pixel_budget import peak_bytes, webp_canvas, webp_peak_bytes
from skipnets.errors import UserError, install_command, one_line


@dataclass(frozen=True)
class Page:
    """One page of a TIFF file, or one frame of an animation.

    Attributes:
        path: The file.
        number: Counted from 0.
    """

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}, page {self.number + 1}"


Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Page
Box = tuple[float, float, float, float]
JPEGDecoder = Callable[[bytes], NDArray[np.uint8]]
"""From a JPEG file's bytes to (H, W, 3)."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Files with these names are images; others are when their content is.
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Files with these names may hold several images.
PAGED_SUFFIXES = (".apng", ".gif", ".png", ".tif", ".tiff", ".webp")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# The ISO media brands of HEIC photographs (ISO/IEC 23008-12, annex B).
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

# A few hundred bytes can declare an image that fills all memory. This is where Pillow begins to warn:
# a quarter of a gibibyte as RGB. Twice as large an image Pillow itself refuses.
MAX_PIXELS = 89_478_485

# How much finer than its result a reduced JPEG is. With 1, crops are 4% less sharp than from the whole
# image, with 2 the difference is below 1% (Pillow's thumbnail() takes 2 as well).
_REDUCING_GAP = 2


_BAND_ROWS = 256


class ImageDecodeError(UserError):
    """One image that cannot be read; the message names it and the reason."""


def open_image(source: Source, channels: int | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as a person sees it: upright, 8 bits, gray or RGB.

    EXIF orientation is applied; transparency is laid on white; palettes and CMYK become RGB; an animation
    gives its first frame. 16 bits are divided by 257 and rounded (in color, Pillow's decoders keep the
    upper byte instead, which is less than one gray level away).

    Args:
        source: A path, a page of a file, the bytes of a file, an open binary file, a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.
        channels: 1 for gray (mode L), 3 for RGB, None for whichever of the two the image has.
        max_pixels: The most that is decoded, at most `MAX_PIXELS`; the header says how many there are.

    Raises:
        ImageDecodeError: The source is missing, damaged, of another format, without a fixed range of
            values (32-bit), or larger than `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        return _converted(_upright(image), channels)


@overload
def open_region(
    source: Source, choose_box: Callable[[int, int], Box], *, size: tuple[int, int], channels: int
) -> tuple[Image.Image, Box]: ...


@overload
def open_region(
    source: Source,
    choose_box: Callable[[int, int], Box],
    *,
    size: tuple[int, int],
    channels: int,
    decode_jpeg: JPEGDecoder | None,
) -> tuple[Image.Image | NDArray[np.uint8], Box]: ...


def open_region(
    source: Source,
    choose_box: Callable[[int, int], Box],
    *,
    size: tuple[int, int],
    channels: int,
    decode_jpeg: JPEGDecoder | None = None,
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

    Returns:
        The image, upright and perhaps reduced, and where in it the box lies. What `decode_jpeg` gave comes
        as an array (H, W, 3).
    """
    with _opened(source) as image:
        if image.format not in ("JPEG", "MPO"):
            image = _converted(_upright(image), channels)
        orientation = _orientation(image)
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
            "L" if channels == 1 else None,
            (ceil(image.width / reduction), ceil(image.height / reduction)),
        )
        # The box that draft returns has fractional edges where the size is no multiple of the scale.
        scale = max(width, height) / max(drafted[1]) if drafted else 1.0
        reduced = _converted(_upright(image), channels)
        # Then the last row and column are in part beyond the image; turning may make them the first.
        x = reduced.width - width / scale if orientation in (2, 3, 6, 7) else 0
        y = reduced.height - height / scale if orientation in (3, 4, 7, 8) else 0
        return reduced, (left / scale + x, top / scale + y, right / scale + x, bottom / scale + y)


@contextmanager
def _opened(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image, header read; any failure inside the block becomes one ImageDecodeError."""
    name = "image"
    try:
        if isinstance(source, np.ndarray):
            name = f"array {source.shape} {source.dtype}"
            yield _from_array(source)
        elif isinstance(source, Image.Image):
            name = str(getattr(source, "filename", "") or f"image {source.size} {source.mode}")
            yield source
        else:
            if isinstance(source, str | os.PathLike | Page):
                name = str(source)
                _check_regular(Path(source.path if isinstance(source, Page) else source))
            canvas = webp_canvas(_head(source, 30))
            if canvas is not None and canvas[0] * canvas[1] > max_pixels:
                raise Image.DecompressionBombError
            with _open_file(source) as image:
                if isinstance(source, Page):
                    _turn_to(image, source.number)
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageDecodeError(f"{name}: larger than {max_pixels:,} pixels, the most that is read") from error
    except FileNotFoundError as error:
        raise ImageDecodeError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(f"{name}: not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ImageDecodeError(f"{name}: {one_line(error)}") from error


def _open_file(source: str | os.PathLike[str] | bytes | BinaryIO | Page) -> Image.Image:
    """The image in a file, recognized by its content; HEIC where its extra is installed."""
    file: Any = source.path if isinstance(source, Page) else source
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
        if not can_read_heif():
            raise ValueError(f"a HEIC image; to read it: {install_command('heic')}") from None
        return Image.open(file, formats=("HEIF",))


def _turn_to(image: Image.Image, page: int) -> None:
    try:
        image.seek(page)
    except EOFError:
        raise ValueError("there is no such page") from None


def _is_heif(file: str | os.PathLike[str] | BinaryIO) -> bool:
    head = _head(file, 12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _check_regular(path: Path) -> None:
    """Refuse what is no file: reading from a pipe may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"{kind}, not a file")


def _head(source: str | os.PathLike[str] | bytes | BinaryIO | Page, size: int) -> bytes:
    """The first bytes of a file."""
    if isinstance(source, bytes):
        return source[:size]
    if isinstance(source, str | os.PathLike | Page):
        with Path(source.path if isinstance(source, Page) else source).open("rb") as opened:
            return opened.read(size)
    source.seek(0)
    head = source.read(size)
    source.seek(0)
    return head


@functools.cache
def can_read_heif() -> bool:
    """Whether pillow-heif is there; it is registered with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_image(path: Path) -> bool:
    """Whether a file's content is an image in a format that can be read, whatever its name."""
    try:
        with _opened(path):
            return True
    except ImageDecodeError:
        return False


def count_pages(path: Path) -> int:
    """How many pages or frames a file has; 1 where it cannot be read."""
    try:
        with _opened(path) as image:
            return int(getattr(image, "n_frames", 1))
    except ImageDecodeError:
        return 1


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype == np.uint16:
        array = _eight_bits(array)
    if array.dtype != np.uint8:
        raise ValueError("arrays of pixels must be uint8 (0–255) or uint16 (0–65535)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError("arrays of pixels must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), and not empty")
    return Image.fromarray(array)


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """uint16 divided by 257, so that 65535 becomes 255, and rounded."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded, also in kinds of TIFF that Pillow decodes wrongly.

    Up to version 13, Pillow mixes up the bytes of separate 16-bit planes that are not compressed, and gives
    16-bit gray values that count from white as if they counted from black.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return image
    tags = image.tag_v2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if planar and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1 and max(bits) > 8 and image.tile:
        return _by_tifffile(image)
    # A file that is mapped into memory instead of read is not turned upright.
    image.filename = ""
    image.load()
    if image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return Image.fromarray(0xFFFF - np.asarray(image))
    return image


def _by_tifffile(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    try:
        import tifffile
    except ImportError:
        remedy = install_command("science")
        raise ValueError(f"a TIFF file of separate 16-bit planes; to read it: {remedy}") from None
    orientation = image.tag_v2.get(ExifTags.Base.Orientation, 1)
    assert image.fp is not None
    image.fp.seek(0)
    with tifffile.TiffFile(image.fp) as file:
        planes = file.asarray(key=image.tell())
    decoded = _from_array(np.moveaxis(planes, 0, -1))
    decoded.getexif()[ExifTags.Base.Orientation] = orientation
    return decoded


def _upright(image: Image.Image) -> Image.Image:
    # First, because PNG may hold its EXIF block behind the pixels, and Pillow turns TIFF by itself in load().
    image = _loaded(image)
    if _orientation(image) == 1:
        return image  # without the copy that exif_transpose makes
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """An upright image in mode L or RGB."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    elif image.has_transparency_data:
        image = _on_white(image)
    mode = {1: "L", 3: "RGB", None: "L" if image.mode in ("1", "L") else "RGB"}[channels]
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    """An image without its transparency, composed in bands of rows, for want of three copies of it."""
    composed = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        band = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        composed.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return composed


@dataclass(frozen=True)
class Header:
    """What an image's header tells.

    Attributes:
        width: Of the upright image, in pixels; of a PNG, as stored.
        height: Likewise.
        channels: 1 for gray, 3 for color.
        bits: Of each channel, as stored.
        format: Such as "JPEG".
        several: Whether the file holds further pages or frames.
    """

    width: int
    height: int
    channels: int
    bits: int
    format: str
    several: bool


def read_header(source: Source) -> Header:
    """Read an image's header, without decoding its pixels.

    Raises:
        ImageDecodeError: There is no image in a known format.
    """
    with _opened(source) as image:
        # Pillow turns TIFF's size itself, and would decode a PNG to look for the tag behind its pixels.
        turned = image.format in ("JPEG", "MPO", "WEBP") and _orientation(image) >= 5
        width, height = image.size[::-1] if turned else image.size
        gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        several = bool(getattr(image, "is_animated", False))
        return Header(width, height, 1 if gray else 3, _bits(image), image.format or "", several)


def decoding_bytes(source: Source, *, max_pixels: int = MAX_PIXELS) -> int:
    """The most memory that `open_image` takes for an image, in bytes, from its header alone.

    Raises:
        ImageDecodeError: There is no image in a known format, or it is larger than `max_pixels`.
    """
    if isinstance(source, bytes) or hasattr(source, "read"):
        canvas = webp_canvas(_head(cast("bytes | BinaryIO", source), 30))
        if canvas is not None and canvas[0] * canvas[1] <= max_pixels:
            return webp_peak_bytes(*canvas)
    with _opened(source, max_pixels) as image:
        return peak_bytes(image)


def _bits(image: Image.Image) -> int:
    """How many bits a channel has in the file; Pillow's mode says 8 where it reduces 16."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if image.mode in ("I", "F"):
        return 32
    # In PNG and PPM, how the pixels are stored stands beside where, such as "RGB;16B".
    return 16 if ";16" in f"{getattr(image, 'tile', '')}{image.mode}" else 1 if image.mode == "1" else 8


def is_gray(path: Path) -> bool:
    """Whether an image's header says that it has no color; False where it cannot be read."""
    try:
        return read_header(path).channels == 1
    except ImageDecodeError:
        return False
