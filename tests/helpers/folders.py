"""Folders of tiny images, and what became of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from skipnets.data.dataset import ImageDataset

_numbers = iter(range(10**9))


def put(root: Path, *names: str, mode: str = "RGB") -> Path:
    """Write images of 3 × 2 pixels under these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (3, 2)).save(path)
    return root


def folder(root: Path, **counts: int) -> Path:
    """root/<class>/0.png… with so many images a class; __ in a name stands for /."""
    for name, count in counts.items():
        put(root, *(f"{name.replace('__', '/')}/{number}.png" for number in range(count)))
    return root


def counts(dataset: ImageDataset, split: str) -> dict[str, int]:
    """Class → how many images of a split have it."""
    part = dataset.split(split)
    return {name: int((part.labels == label).sum()) for label, name in enumerate(part.classes)}


def image_bytes(file_format: str = "PNG", **options: object) -> bytes:
    """A file with an image that no other call returns."""
    pixels = np.random.default_rng(next(_numbers)).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def plant(root: Path, tree: dict[str, object]) -> Path:
    """Write a tree: path → how many images lie in that folder, a file's text or bytes, or None (a folder)."""
    for name, content in tree.items():
        path = root / name
        if isinstance(content, int):
            path.mkdir(parents=True, exist_ok=True)
            for number in range(content):
                (path / f"{number}.png").write_bytes(image_bytes())
        elif content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return root


def found(dataset: ImageDataset) -> str:
    """Such as "train: cat 4, dog 3; test: cat 1", with the images that have no split as "test"."""
    parts = []
    for split in ("train", "val", "test"):
        part = dataset.split(split)
        counts = np.bincount(part.labels, minlength=len(dataset.classes))
        if len(part):
            present = zip(dataset.classes, counts, strict=True)
            parts.append(f"{split}: " + ", ".join(f"{name} {count}" for name, count in present if count))
    return "; ".join(parts)
