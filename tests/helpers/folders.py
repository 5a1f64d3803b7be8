"""Class folders of tiny images, and what became of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from skipnets.data.dataset import ImageDataset


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
