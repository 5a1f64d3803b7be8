"""Example images that the page offers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from skipnets.data.decoding import ImageDecodeError, Source, render_image
from skipnets.data.options import DataOptions
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import images_below, open_dataset
from skipnets.errors import UserError, naming

__all__ = ["Example", "find_examples"]

_LONGEST_SIDE = 640
_LOSSLESS_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example image.

    Attributes:
        name: Its name on the page.
        content: The encoded file: downscaled, and without metadata such as where it was taken.
        media_type: Of the file.
    """

    name: str
    content: bytes
    media_type: str


def find_examples(
    data: str | Path,
    *,
    count: int = 8,
    preprocessing: Preprocessing | None = None,
    options: DataOptions | None = None,
) -> list[Example]:
    """Choose varied images and hold them in memory.

    Args:
        data: A folder of images, in subfolders or not, a manifest, or a named dataset.
        count: Most images to choose.
        preprocessing: Of the model that they are for: where it has a window, they are shown through it.
        options: How a manifest is read.

    Raises:
        UserError: If there are none that can be read, or the model's images are not gray or in color.
    """
    if preprocessing is not None:
        preprocessing.require_images(f"examples={data}")
    if preprocessing is not None and preprocessing.channels not in (1, 3):
        raise UserError(
            f"examples={data}: must not be given for a model of {preprocessing.channels} bands; "
            "the page shows gray and color"
        )
    if Path(data).is_dir():
        named: list[tuple[str, Source]] = [(path.stem, path) for path in images_below(Path(data))]
    else:
        with naming("examples"):
            dataset = open_dataset(str(data), fractions=None, options=options).split("test")
        labels = dataset.label_names
        order = sorted(range(len(dataset)), key=labels.__getitem__)
        named = [(labels[index], dataset.source(index)) for index in order]
    examples = []
    count = min(count, len(named))
    # Sorted by class: the middles of equal parts are of different classes.
    for part in range(count):
        name, source = named[(2 * part + 1) * len(named) // (2 * count)]
        try:
            examples.append(_example(name, _shown(source, preprocessing)))
        except ImageDecodeError:
            continue
    if not examples:
        raise UserError(f"examples={data}: holds no images that can be read")
    return examples


def _shown(source: Source, preprocessing: Preprocessing | None) -> Image.Image:
    """An image as the model sees it, in 8 bits, which it takes as they are."""
    if preprocessing is None or preprocessing.bits <= 8:
        return render_image(source)
    return preprocessing.shown(preprocessing.open(source))


def _example(name: str, image: Image.Image) -> Example:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    # Pixels alone: metadata may be private.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    file = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        bare.save(file, "PNG")
        return Example(name=name, content=file.getvalue(), media_type="image/png")
    bare.save(file, "JPEG", quality=90)
    return Example(name=name, content=file.getvalue(), media_type="image/jpeg")
