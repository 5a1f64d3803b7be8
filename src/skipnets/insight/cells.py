"""What contact sheets are made of: scaled images and captions. Needs neither torch nor matplotlib."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["CELL", "INK", "SOFT_INK", "find_font", "fitted", "short_names", "truncated"]

CELL = 256  # pixels, the side of an image's place on a sheet
INK = (34, 39, 46)
SOFT_INK = (91, 100, 112)


def fitted(image: Image.Image, side: int = CELL) -> Image.Image:
    """Scale an image to a square; pixels of small images stay sharp."""
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS)


def short_names(paths: Sequence[str], *, folders: int = 0) -> dict[str, str]:
    """The shortest unique ending of each path: its name, with parent folders if needed.

    Args:
        paths: What to tell apart.
        folders: Parent folders to show in any case, as far as there are some.
    """
    parts = {path: Path(path).parts for path in paths}
    counts = Counter(own[start:] for own in parts.values() for start in range(len(own)))
    return {
        path: "/".join(next((own[-n:] for n in range(1 + folders, len(own)) if counts[own[-n:]] == 1), own))
        for path, own in parts.items()
    }


@cache
def find_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font for captions: matplotlib's, which has letters of many scripts, or else Pillow's own."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def truncated(draw: ImageDraw.ImageDraw, text: str, size: int, width: int = CELL) -> str:
    """Truncate a text to a width in pixels."""
    font = find_font(size)
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
