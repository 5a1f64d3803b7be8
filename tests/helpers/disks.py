"""Images of disks, whose sizes and brightness are numbers to predict."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

TARGETS = ("radius mm", "<b>level</b>")


def write_disks(folder: Path, count: int = 120, *, test: int = 0, unknown: int = 0) -> Path:
    """A disk in each image of 16×16 pixels, two images of a patient; a manifest with two numbers and a grade.

    The level is negative, and of another order of magnitude than the radius.

    Args:
        folder: For images and manifest.
        count: Images.
        test: How many of them, the last, are test images; 0 writes no splits.
        unknown: The level of every image with a number that this divides is not known; 0 for of none.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:16, 0:16]
    rows = []
    for index in range(count):
        radius, gray = generator.uniform(1.5, 7), generator.uniform(80, 250)
        inside = (x - 7.5) ** 2 + (y - 7.5) ** 2 < radius**2
        pixels = np.clip(inside * gray + generator.normal(0, 4, inside.shape), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
        level = "" if unknown and index % unknown == 0 else f"{10 * gray - 3000:.1f}"
        row = [f"{index:03}.png", f"p{index // 2}", f"{radius / 2:.3f}", level, int(radius // 2)]
        rows.append([*row, *(["test" if index >= count - test else "train"] if test else [])])
    path = folder / "numbers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["path", "patient", *TARGETS, "grade", *(["split"] if test else [])], *rows]
        )
    return path
