"""Images with several labels each, and images with a number, of Fashion-MNIST's garments.

    python benchmarks/tiles.py sets
    skipnets train sets/tiles/list.csv --model resnet8_w16 --epochs 4 --workers 0 --out runs/tiles
    skipnets train sets/turned/list.csv --targets degrees --model resnet8_w16 --epochs 4 --workers 0 \
        --out runs/turned

`tiles`: two or three garments side by side in 28×84 pixels, on black where there are two. The manifest has a
column for each of the ten classes; one mark in twenty is left out. `turned`: a sneaker or an ankle boot in
28×28 pixels, turned by up to 60 degrees, and the angle. Both have 3,000 training, 500 validation and 2,000
test images; no garment is in two images. Fashion-MNIST is Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.named import read_named

IMAGES = {"train": 3000, "val": 500, "test": 2000}
UNKNOWN = 0.05
SHOES = ("Sneaker", "Ankle boot")
MOST_DEGREES = 60.0


def garments() -> tuple[tuple[str, ...], NDArray[np.uint8], NDArray[np.int64]]:
    """The ten classes' names, and all garments (N, 28, 28) with their classes."""
    classes, parts = read_named("fashion-mnist", download=False)
    images, labels = (np.concatenate([part[index] for part in parts.values()]) for index in (0, 1))
    return tuple(classes), images, labels


def write_tiles(folder: Path) -> None:
    """Images of two or three garments, and list.csv."""
    classes, images, labels = garments()
    generator = np.random.default_rng(0)
    order = iter(generator.permutation(len(images)).tolist())
    rows: list[list[object]] = []
    for split, count in IMAGES.items():
        for _ in range(count):
            shown = [next(order) for _ in range(generator.integers(2, 4))]
            pixels = np.zeros((28, 84), np.uint8)
            for place, garment in zip(generator.permutation(3)[: len(shown)], shown, strict=True):
                pixels[:, 28 * place : 28 * (place + 1)] = images[garment]
            present = np.isin(np.arange(len(classes)), labels[shown]).astype(int)
            marks = [int(mark) if generator.random() >= UNKNOWN else "" for mark in present]
            name = f"{len(rows):05}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append([name, split, *marks])
    write_list(folder, ["path", "split", *classes], rows)


def write_turned(folder: Path) -> None:
    """Images of a turned shoe, and list.csv."""
    classes, images, labels = garments()
    generator = np.random.default_rng(1)
    shoes = np.flatnonzero(np.isin(labels, [classes.index(name) for name in SHOES]))
    order = iter(generator.permutation(shoes).tolist())
    rows: list[list[object]] = []
    for split, count in IMAGES.items():
        for _ in range(count):
            degrees = generator.uniform(-MOST_DEGREES, MOST_DEGREES)
            turned = Image.fromarray(images[next(order)]).rotate(degrees, Image.Resampling.BICUBIC)
            name = f"{len(rows):05}.png"
            turned.save(folder / name)
            rows.append([name, split, f"{degrees:.2f}"])
    write_list(folder, ["path", "split", "degrees"], rows)


def write_list(folder: Path, header: list[str], rows: list[list[object]]) -> None:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder that the sets go into")
    options = parser.parse_args()
    for name, write in (("tiles", write_tiles), ("turned", write_turned)):
        folder = options.out / name
        folder.mkdir(parents=True)
        write(folder)
        print(folder / "list.csv")


if __name__ == "__main__":
    main()
