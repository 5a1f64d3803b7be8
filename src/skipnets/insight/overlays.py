"""Draw explanations: an overlay on the image, and a contact sheet of many."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.insight.attribution import Explanation
from skipnets.insight.cells import CELL, INK, SOFT_INK, find_font, fitted, short_names, truncated
from skipnets.tables import number_text
from skipnets.terminal import printable

_TEXT = 40
_GAP = 14
_BAR = 44


def overlay(explanation: Explanation) -> Image.Image:
    """The image in gray at its own resolution, with color where it is evidence for the class."""
    gray = np.asarray(explanation.image.convert("L"), np.float32) / np.float32(255)
    return _colored(gray, _normalized(explanation.map()))


def _colored(gray: NDArray[np.float32], strength: NDArray[np.float32]) -> Image.Image:
    """Blend a map over a faded gray image; both are (H, W), from 0 to 1."""
    gray = gray[..., None]
    faded = 0.25 + 0.75 * gray
    # Plasma without its darkest part, which would look like shadow.
    colors = mpl.colormaps["plasma"](0.12 + 0.86 * strength)[..., :3].astype(np.float32)
    alpha = (0.85 * strength**0.7)[..., None]
    mixed = faded * (1 - alpha) + colors * alpha * (0.45 + 0.55 * gray)
    return Image.fromarray(np.rint(255 * np.clip(mixed, 0, 1)).astype(np.uint8))


def contact_sheet(explanations: Iterable[Sequence[Explanation]]) -> Image.Image:
    """Arrange images and their overlays on one sheet with a color bar.

    Raises:
        UserError: If there are none.
    """
    return _sheet([_cells(row) for row in explanations])


def save_explanations(
    explanations: Iterable[Sequence[Explanation]], output: str | os.PathLike[str]
) -> tuple[Path, Path]:
    """Write a contact sheet, and next to it a folder with each overlay (PNG) and each raw map (NPY).

    Args:
        explanations: From `explain`; each is written before the next is computed.
        output: The sheet, a .png file; the folder has its name without the suffix.

    Returns:
        Paths of the sheet and the folder.

    Raises:
        UserError: If there are none, or a file cannot be written.
    """
    path = Path(output)
    folder = path.with_suffix("")
    cells = []
    for index, row in enumerate(explanations, start=1):
        for item in row:
            stem = f"{index:03}-{_plain_name(Path(item.source).stem)}-{_plain_name(item.label)}"
            with atomic_path(folder / f"{stem}.npy") as temporary:
                np.save(temporary, item.array())
            with atomic_path(folder / f"{stem}.png") as temporary:
                overlay(item).save(temporary)
        cells.append(_cells(row))
    with atomic_path(path) as temporary:
        _sheet(cells).save(temporary)
    return path, folder


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One image on the sheet, with its captions."""

    image: Image.Image
    title: str
    note: str


def _cells(row: Sequence[Explanation]) -> list[_Cell]:
    """Cells for an image and its overlays, scaled for the sheet."""
    first = row[0]
    return [
        _Cell(image=fitted(first.image.convert("RGB")), title=printable(first.source), note=""),
        *(
            _Cell(
                image=fitted(overlay(item)),
                title=printable(item.label),
                note=f"{_answer(item)} · {_METHOD_NAMES[item.method]}",
            )
            for item in row
        ),
    ]


def _answer(item: Explanation) -> str:
    """The probability, or the number that is explained."""
    if item.value is None:
        return f"probability {item.probability or 0:.1%}"
    return f"{number_text(item.value)}, {'above' if item.raised else 'below'} mean"


def _sheet(rows: Sequence[Sequence[_Cell]]) -> Image.Image:
    """Lay out rows from left to right, then down, so that the sheet is about square."""
    if not rows:
        raise UserError("images: must name at least one")
    row_width = max(map(len, rows)) * (CELL + _GAP)
    row_height = CELL + _TEXT + _GAP
    groups = max(round(math.sqrt(len(rows) * row_height / row_width)), 1)
    lines = -(-len(rows) // groups)
    # A wider gap separates the groups.
    bottom = _GAP + lines * row_height
    sheet = Image.new("RGB", (groups * (row_width + _GAP), bottom + _BAR), "white")
    draw = ImageDraw.Draw(sheet)
    names = short_names([row[0].title for row in rows])
    for index, row in enumerate(rows):
        line, group = divmod(index, groups)
        top, left = _GAP + line * row_height, _GAP + group * (row_width + _GAP)
        for cell in row:
            sheet.paste(cell.image, (left, top + CELL - cell.image.height))
            title = names[cell.title] if cell is row[0] else cell.title
            draw.text((left, top + CELL + 5), truncated(draw, title, 14), fill=INK, font=find_font(14))
            draw.text((left, top + CELL + 23), cell.note, fill=SOFT_INK, font=find_font(12))
            left += CELL + _GAP
    _draw_bar(sheet, draw, bottom)
    return sheet


def _draw_bar(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    """Draw the color bar."""
    ramp = np.tile(np.linspace(0, 1, CELL, dtype=np.float32), (14, 1))
    sheet.paste(_colored(np.full_like(ramp, 0.7), ramp), (_GAP, top))
    for text, x, anchor in (("no evidence", _GAP, "la"), ("strongest evidence", _GAP + CELL, "ra")):
        draw.text((x, top + 18), text, fill=SOFT_INK, font=find_font(12), anchor=anchor)


_METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "integrated-gradients": "Integrated Gradients",
    "occlusion": "occlusion",
}


def _normalized(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale positive evidence to 0–1; the strongest half percent, often isolated pixels, is clipped to 1."""
    positive = np.maximum(values, 0)
    top = float(np.quantile(positive, 0.995)) or float(positive.max())
    scaled: NDArray[np.float32] = np.clip(positive / top, 0, 1) if top > 0 else positive
    return scaled


def _plain_name(text: str) -> str:
    """Make a text safe as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)[:80]
