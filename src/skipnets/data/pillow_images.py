"""What Pillow opened, or an array, as upright pixels: in 8 bits for people, or values with all bits.

Pillow reduces 16-bit color to 8, and reads some kinds of TIFF wrongly; here both come out whole.
H height, W width, C channels.
"""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from skipnets.data import tiff
from skipnets.data.raster import (
    Header,
    RasterFile,
    Values,
    fit_channels,
    turn_upright,
)

__all__ = [
    "converted",
    "file_of",
    "image_of_array",
    "orientation_of",
    "page_image",
    "pillow_header",
    "read_pillow_values",
    "upright",
    "whole_file",
]

_BAND_ROWS = 256


def page_image(file: RasterFile, page: int | None, channels: int | None) -> Image.Image:
    """A page in mode L or RGB, upright, of what has a fixed range from black to white."""
    values = file.read(page, channels)
    array = values.array
    if values.bits > 8:
        if array.dtype != np.uint16 or values.bits < 16 or file.header.format in ("DICOM", "NIfTI"):
            raise ValueError(
                f"its values ({values.bits} bits) have no fixed range from black to white; "
                "this takes images of 8 bits"
            )
        array = _eight_bits(array)
    fitted = fit_channels(replace(values, array=array, bits=8), channels).array
    if fitted.shape[2] not in (1, 3):
        raise ValueError(f"has {fitted.shape[2]} channels, neither gray nor color")
    shown = 255 - fitted if values.white_is_low else fitted
    return Image.fromarray(shown[:, :, 0] if shown.shape[2] == 1 else shown)


def read_pillow_values(
    image: Image.Image, number: int | None, channels: int | None, max_pixels: int
) -> Values:
    """The values of what Pillow opened, with all the bits that the file has."""
    bits = _bits(image)
    pages = image.n_frames if isinstance(image, TiffImagePlugin.TiffImageFile) and number is None else 0
    if channels == pages and channels not in (1, 3, 4):  # the pages are bands
        with closing(tiff.TiffRaster(file_of(image), max_pixels=max_pixels)) as file:
            return file.read(None, channels)
    if bits <= 8:
        if channels == 4 and image.mode in ("CMYK", "RGBA", "RGBX"):
            return Values(array=np.asarray(upright(image)), bits=8)
        shown = np.asarray(converted(upright(image), channels if channels in (1, 3) else None))
        return Values(array=shown.reshape(*shown.shape[:2], -1), bits=8)
    gray = image.mode in ("I", "F") or image.mode.startswith("I;16")
    tiles = getattr(image, "tile", ())
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if not gray:
            with closing(tiff.TiffRaster(file_of(image), max_pixels=max_pixels)) as file:
                return file.read(image.tell(), channels)
        image.filename = ""  # see _loaded
        white_is_low = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        image.load()
        return Values(array=np.asarray(image)[:, :, None], bits=bits, white_is_low=white_is_low)
    if gray:
        return Values(array=np.asarray(upright(image))[:, :, None], bits=bits)
    if image.format == "PNG" and tiles and tiles[0].args in ("RGB;16B", "RGBA;16B"):
        return _both_bytes(image)
    if _is_deep_gray_with_alpha(image):
        return _both_bytes_of_gray(image)
    # Color of which Pillow keeps the upper byte.
    upper = np.asarray(converted(upright(image), None)).astype(np.uint16) * np.uint16(257)
    return Values(array=upper.reshape(*upper.shape[:2], -1), bits=bits)


def file_of(image: Image.Image) -> BinaryIO:
    """The file that an image is to be decoded from, at its start."""
    assert isinstance(image, ImageFile.ImageFile)
    return whole_file(image.fp)


def whole_file(file: Any) -> BinaryIO:
    """A file at its start, with all that libraries ask of one."""
    file.seek(0)
    return cast(BinaryIO, file) if isinstance(file, io.IOBase) else io.BytesIO(file.read())


def _both_bytes(image: Image.Image) -> Values:
    """A PNG in 16-bit color. Pillow keeps the upper byte of each value; read as little-endian, the lower."""
    data = file_of(image).read()
    parts = []
    for order in ("B", "L"):
        part: ImageFile.ImageFile = Image.open(io.BytesIO(data), formats=("PNG",))
        part.tile = [tile._replace(args=f"{part.mode};16{order}") for tile in part.tile]
        part.load()
        parts.append(np.asarray(part).astype(np.uint16))
    array = turn_upright(parts[0] * np.uint16(256) + parts[1], orientation_of(part))
    return Values(array=array, bits=16, alpha=array.shape[2] == 4)


def _is_deep_gray_with_alpha(image: Image.Image) -> bool:
    """Whether it is a PNG in 16-bit gray with alpha, for which Pillow has no mode but RGBA."""
    return image.format == "PNG" and any(tile.args == "LA;16B" for tile in getattr(image, "tile", ()))


def _both_bytes_of_gray(image: Image.Image) -> Values:
    """A PNG in 16-bit gray with alpha, of which Pillow keeps the upper bytes: here all four are channels."""
    part: ImageFile.ImageFile = Image.open(io.BytesIO(file_of(image).read()), formats=("PNG",))
    part.tile = [tile._replace(args="RGBA") for tile in part.tile]
    part.load()
    array = np.asarray(part).view(">u2").astype(np.uint16)
    return Values(array=turn_upright(array, orientation_of(part)), bits=16, alpha=True)


def image_of_array(array: NDArray[Any]) -> Image.Image:
    """Pixels (H, W) or (H, W, C) of 8 or 16 bits as an image; ValueError for what is none."""
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


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded, also in kinds of TIFF that Pillow decodes wrongly.

    Up to version 13, Pillow mixes up the bytes of separate 16-bit planes that are not compressed, refuses
    such planes with associated alpha, and gives 16-bit gray values that count from white as if they counted
    from black.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return image
    tags = image.tag_v2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    associated = 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if (
        planes
        and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
        and (max(bits) > 8 or associated)
        and image.tile
    ):
        with closing(tiff.TiffRaster(file_of(image), max_pixels=image.width * image.height)) as file:
            return page_image(file, image.tell(), None)
    # A file that is mapped into memory instead of read is not turned upright.
    image.filename = ""
    image.load()
    if image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return Image.fromarray(0xFFFF - np.asarray(image))
    return image


def upright(image: Image.Image) -> Image.Image:
    """The image decoded, and turned as its EXIF orientation says."""
    # First, because PNG may hold its EXIF block behind the pixels, and Pillow turns TIFF by itself in load().
    image = _loaded(image)
    if orientation_of(image) == 1:
        return image  # without the copy that exif_transpose makes
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def converted(image: Image.Image, channels: int | None) -> Image.Image:
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
    """An image without its transparency, composed in bands of rows, which saves three copies of it."""
    composed = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        band = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        composed.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return composed


def pillow_header(image: Image.Image) -> Header:
    """Size, channels and bits of what Pillow opened, without decoding it."""
    # Pillow turns TIFF's size itself, and would decode a PNG to look for the tag behind its pixels.
    turned = image.format in ("JPEG", "MPO", "WEBP") and orientation_of(image) >= 5
    width, height = image.size[::-1] if turned else image.size
    gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    gray = gray or _is_deep_gray_with_alpha(image)
    several = bool(getattr(image, "is_animated", False))
    return Header(width, height, 1 if gray else 3, _bits(image), image.format or "", several)


def _bits(image: Image.Image) -> int:
    """How many bits a channel has in the file; Pillow's mode says 8 where it reduces 16."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if image.mode in ("I", "F"):
        return 32
    # In PNG and PPM, how the pixels are stored stands beside where, such as "RGB;16B".
    return 16 if ";16" in f"{getattr(image, 'tile', '')}{image.mode}" else 1 if image.mode == "1" else 8
