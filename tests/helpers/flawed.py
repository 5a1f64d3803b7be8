"""A small dataset with one of every flaw, and a table of predictions for it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

FOUND = {
    "contradiction": {"train/cat/both.png", "train/dog/both.png", "train/cat/outvoted.png"},
    "spelling": {"Dog"},
    "leak": {"train/cat/seen.jpg"},
    "exact-copy": {"train/dog/copy.png", "train/dog/both.png", "train/dog/three.png", "train/dog/two.png"},
    "near-copy": {"train/dog/near.png"},
    "missing": set(),
    "unreadable": {"train/dog/broken.png"},
    "blank": {"train/dog/blank.png"},
    "dark": {"train/dog/dark.png"},
    "bright": {"train/dog/bright.png"},
    "low-contrast": {"train/dog/flat.png"},
    "low-information": {"train/dog/placeholder.png"},
    "blurred": {"train/dog/blurred.png"},
    "odd-size": {"train/dog/large.png"},
    "odd-shape": {"train/dog/narrow.png"},
    "odd-color": {"train/dog/gray.png"},
    "small-class": set(),
}
"""Kind → names of what there is to be found by the images alone."""


def scene(
    seed: int,
    *,
    size: tuple[int, int] = (64, 48),
    sides: tuple[int, int, int] = (4, 9, 24),
    weights: tuple[int, int, int] = (4, 2, 2),
) -> Image.Image:
    """An image with coarse and fine structure that no other seed gives.

    Args:
        seed: Of the random numbers.
        size: Width and height.
        sides: Of the random squares that are enlarged and averaged, coarse to fine.
        weights: Of each in the average.
    """
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            ),
            dtype=float,
        )
        for side in sides
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=weights).astype(np.uint8))


def write_flawed(root: Path) -> None:
    """Write train and test folders of cats and dogs; `FOUND` says what is wrong with them."""
    for split, label, seeds in (
        ("train", "cat", range(12)),
        ("train", "dog", range(20, 30)),
        ("train", "Dog", range(80, 81)),
        ("test", "cat", range(40, 50)),
        ("test", "dog", range(50, 60)),
    ):
        (root / split / label).mkdir(parents=True)
        for seed in seeds:
            scene(seed).save(root / split / label / f"{seed}.png")
    cats, dogs = root / "train" / "cat", root / "train" / "dog"
    scene(40).save(cats / "seen.jpg", quality=80)
    (dogs / "copy.png").write_bytes((dogs / "20.png").read_bytes())
    scene(21).crop((2, 1, 62, 46)).save(dogs / "near.png")
    for path in (cats / "both.png", dogs / "both.png"):
        scene(60).save(path)
    for path in (cats / "outvoted.png", dogs / "two.png", dogs / "three.png"):
        scene(61).save(path)
    (dogs / "broken.png").write_bytes((dogs / "20.png").read_bytes()[:300])
    Image.new("RGB", (64, 48), (90, 90, 90)).save(dogs / "blank.png")
    ImageEnhance.Brightness(scene(62)).enhance(0.2).save(dogs / "dark.png")
    scene(63).point(lambda level: 245 + level // 26).save(dogs / "bright.png")
    scene(64).point(lambda level: 100 + level // 10).save(dogs / "flat.png")
    placeholder = Image.new("RGB", (64, 48), (250, 200, 90))
    placeholder.paste((20, 60, 90), (20, 16, 44, 32))
    placeholder.save(dogs / "placeholder.png")
    scene(65).filter(ImageFilter.GaussianBlur(5)).save(dogs / "blurred.png")
    scene(66).resize((640, 480), Image.Resampling.NEAREST).save(dogs / "large.png")
    scene(67).resize((180, 24), Image.Resampling.NEAREST).save(dogs / "narrow.png")
    scene(68).convert("L").save(dogs / "gray.png")


def write_predictions(root: Path, path: Path) -> None:
    """Write what a good model says: train/cat/7.png and test/cat/47.png are dogs, and 8.png may be one."""
    doubtful = {"train/cat/7.png": 0.999, "test/cat/47.png": 0.999, "train/cat/8.png": 0.75}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "p:cat", "p:dog"])
        for image in sorted(root.rglob("*.png")):
            name = image.relative_to(root).as_posix()
            label = image.parent.name.lower()
            dog = doubtful.get(name, 0.97 if label == "dog" else 0.03)
            writer.writerow([name, label, 1 - dog, dog])
