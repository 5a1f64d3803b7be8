"""Real images with several labels each, and a run that was trained on them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

LABELS = ("0", "1", "<b>2</b>")


def write_tiles(folder: Path, count: int = 120, *, test: int = 0) -> Path:
    """Two scanned digits side by side in an image, labeled by which of 0, 1 and 2 they are; a manifest.

    Every twentieth mark is unknown, and two images are of one patient. The last `test` images are a
    test split, if there are any.
    """
    folder.mkdir(parents=True)
    images, digits = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        pair = generator.choice(np.flatnonzero(digits < 5), 2, replace=False)
        pixels = np.hstack([images[each].reshape(8, 8) for each in pair]) * 255 / 16
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
        marks = [str(int(number in digits[pair])) for number in range(3)]
        if index % 20 == 7:
            marks[index % 3] = ""
        split = ["test" if index >= count - test else "train"] if test else []
        rows.append([f"{index:03}.png", f"p{index // 2}", *split, *marks])
    path = folder / "marks.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "patient", *(["split"] if test else []), *LABELS], *rows])
    return path
