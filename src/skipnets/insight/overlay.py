"""Explanations as pictures: a map laid over its picture, and many of them on one sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skipnets.files import atomic_path
from skipnets.insight.attribution import Explanation

_INK = (34, 39, 46)
_SOFT_INK = (91, 100, 112)
_CELL = 256
_TEXT = 40
_GAP = 14


def overlay(explanation: Explanation) -> Image.Image:
    """The picture at its own resolution, faded and grey, coloured where it speaks for the class."""
    strength = _shown(explanation.map())
    grey = np.asarray(explanation.picture.convert("L"), np.float32)[..., None] / 255
    faded = 0.25 + 0.75 * grey
    # Plasma without its darkest part, which would look like shadow.
    colours = mpl.colormaps["plasma"](0.12 + 0.86 * strength)[..., :3].astype(np.float32)
    alpha = (0.85 * strength**0.7)[..., None]
    mixed = faded * (1 - alpha) + colours * alpha * (0.45 + 0.55 * grey)
    return Image.fromarray(np.rint(255 * np.clip(mixed, 0, 1)).astype(np.uint8))


def contact_sheet(explanations: Sequence[Sequence[Explanation]]) -> Image.Image:
    """A row for each picture: the picture itself, then an overlay for each class that was explained."""
    columns = 1 + max(len(row) for row in explanations)
    # A single class leaves room for two pictures side by side.
    groups = 2 if columns == 2 and len(explanations) > 3 else 1
    lines = -(-len(explanations) // groups)
    width = _GAP + groups * columns * (_CELL + _GAP) + (groups - 1) * _GAP
    height = _GAP + lines * (_CELL + _TEXT + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(explanations):
        line, group = divmod(index, groups)
        top = _GAP + line * (_CELL + _TEXT + _GAP)
        left = _GAP + group * (columns * (_CELL + _GAP) + _GAP)
        cells = [(row[0].picture.convert("RGB"), Path(row[0].source).name, "")]
        cells += [
            (overlay(item), item.label, f"{item.probability:.1%} · {_METHOD_NAMES[item.method]}")
            for item in row
        ]
        for picture, title, note in cells:
            fitted = _fitted(picture)
            sheet.paste(fitted, (left, top + _CELL - fitted.height))
            draw.text((left, top + _CELL + 5), _cut(draw, title, 14), fill=_INK, font=_font(14))
            draw.text((left, top + _CELL + 23), note, fill=_SOFT_INK, font=_font(12))
            left += _CELL + _GAP
    return sheet


def save_explanations(
    explanations: Sequence[Sequence[Explanation]], output: str | os.PathLike[str]
) -> tuple[Path, Path]:
    """Write the contact sheet, and beside it a folder with each overlay (PNG) and each raw map (NPY).

    Args:
        explanations: What `explain` gives.
        output: The sheet, a .png file; the folder has its name without the suffix.

    Returns:
        The sheet and the folder.
    """
    path = Path(output)
    folder = path.with_suffix("")
    for index, row in enumerate(explanations, start=1):
        for item in row:
            stem = f"{index:03}-{_plain_name(Path(item.source).stem)}-{_plain_name(item.label)}"
            with atomic_path(folder / f"{stem}.npy") as temporary:
                np.save(temporary, item.map())
            with atomic_path(folder / f"{stem}.png") as temporary:
                overlay(item).save(temporary)
    with atomic_path(path) as temporary:
        contact_sheet(explanations).save(temporary)
    return path, folder


_METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "integrated-gradients": "Integrated Gradients",
    "occlusion": "occlusion",
}


def _shown(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What speaks for the class, from 0 to 1; the strongest half percent, often lone pixels, is cut at 1."""
    positive = np.maximum(values, 0)
    top = float(np.quantile(positive, 0.995)) or float(positive.max())
    shown: NDArray[np.float32] = np.clip(positive / top, 0, 1) if top > 0 else positive
    return shown


def _fitted(picture: Image.Image) -> Image.Image:
    """Into a cell: small pictures are enlarged by whole steps, so that their pixels stay sharp."""
    scale = _CELL / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _cut(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """As much of a text as fits under a cell."""
    if draw.textlength(text, font=_font(size)) <= _CELL:
        return text
    while text and draw.textlength(text + "…", font=_font(size)) > _CELL:
        text = text[:-1]
    return text + "…"


def _plain_name(text: str) -> str:
    """A text as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)[:80]
