"""Thumbnails as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io

from PIL import Image

__all__ = ["THUMBNAIL", "data_uri", "thumbnail_scale"]

THUMBNAIL = 112  # pixels, the longer side


def thumbnail_scale(image: Image.Image) -> float:
    """The scale of a thumbnail; an integer for small images, so that all their pixels stay of equal size."""
    scale = THUMBNAIL / max(image.size)
    return max(round(scale), 1) if scale > 1 else scale


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
