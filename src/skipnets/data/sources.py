"""What images there are, their labels and their splits: from a folder, a manifest, or a named set."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.decoding import SUFFIXES, is_gray, open_image
from skipnets.data.named import NAMED_SETS, read_named
from skipnets.data.splits import SPLITS, check_fractions, cut, read_rows, read_splits, write_splits
from skipnets.errors import UserError, near_matches

logger = logging.getLogger("skipnets")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """A labeled list of images, held in memory or lying in files. N images.

    Args:
        classes: the class names; a label is a position in this.
        names: N names, unique: the path below `root`, or such as "digits/0001". What splits.csv holds.
        labels: (N,) int64.
        splits: (N,) "train", "val" or "test".
        root: the folder that `names` are relative to; None where `images` holds the images.
        images: (N, H, W) or (N, H, W, 3) uint8; None where they lie in files.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    root: Path | None = None
    images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def split(self, name: str) -> ImageDataset:
        """The images of "train", "val" or "test", or of "all" of them; classes and their order stay.

        Raises:
            UserError: there is no such split.
        """
        if name == "all":
            return self
        if name not in SPLITS:
            raise UserError(
                f"split={name!r}: must be one of {', '.join(SPLITS)}, all{near_matches(name, SPLITS)}"
            )
        return self.select(np.flatnonzero(self.splits == name))

    def select(self, indices: NDArray[np.int64]) -> ImageDataset:
        """The images at these positions, in this order."""
        return replace(
            self,
            names=[self.names[index] for index in indices],
            labels=self.labels[indices],
            splits=self.splits[indices],
            images=None if self.images is None else self.images[indices],
        )

    def source(self, index: int) -> Path | NDArray[np.uint8]:
        """What `Preprocessing` and `open_image` read the image from: its file, or its pixels."""
        if self.images is not None:
            return self.images[index]
        assert self.root is not None
        return self.root / self.names[index]

    def sources(self) -> Iterator[tuple[str, Path | NDArray[np.uint8]]]:
        """The name and the source of each image."""
        return zip(self.names, map(self.source, range(len(self))), strict=True)

    def open(self, index: int) -> Image.Image:
        """The image, upright, in mode L or RGB.

        Raises:
            ImageDecodeError: it cannot be read.
        """
        return open_image(self.source(index))

    @property
    def channels(self) -> int:
        """1 if the images are gray, else 3; of files, the headers of up to 100 are looked at."""
        if self.images is not None:
            return 1 if self.images.ndim == 3 else 3
        assert self.root is not None
        sample = self.names[:: -(-len(self) // 100) or 1]
        return 1 if sample and all(is_gray(self.root / name) for name in sample) else 3

    def write_splits(self, path: str | os.PathLike[str]) -> None:
        """Write names, labels and splits as CSV, for `open_dataset(splits=...)` to repeat them."""
        labels = [self.classes[label] for label in self.labels]
        write_splits(path, list(zip(self.names, labels, self.splits.tolist(), strict=True)))


def open_dataset(
    data: str | os.PathLike[str],
    *,
    seed: int = 0,
    fractions: Sequence[float] | None = (0.7, 0.15, 0.15),
    splits: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> ImageDataset:
    """Find the images of a data set and which of them train, validate and test.

    A folder is either root/<class>/… or root/{train,val,test}/<class>/…; below a class, images may lie at
    any depth. Hidden files and folders, and files that are not images, are passed over. A manifest is a CSV
    file with the columns path (relative to it), label and, if wanted, split. What has no split is dealt out
    by class; if only "val" or "test" is missing, it is cut from "train", keeping the ratio of the fractions.

    Args:
        data: a folder, a manifest, or a named set: digits, mnist, fashion-mnist, cifar10, cifar100, svhn.
            A folder that is named like a set is written ./digits.
        seed: of the dealing out, not negative.
        fractions: shares of train, val and test, which sum to 1. None deals nothing out: images without a
            split are then "test", and any number of classes and images will do. For data to be evaluated.
        splits: a CSV file written by an earlier run, whose splits are repeated; images that it does not
            list are left out.
        download: whether a named set may be fetched from the network.

    Raises:
        UserError: there is no such data, or not enough of it.
    """
    if seed < 0:
        raise UserError(f"seed={seed}: must not be negative")
    shares = None if fractions is None else check_fractions(fractions)
    if isinstance(data, str) and data in NAMED_SETS:
        dataset = _named(data, download=download)
    else:
        path = Path(data)
        if path.is_dir():
            dataset = _folder(path)
        elif path.is_file() and path.suffix.lower() == ".csv":
            dataset = _manifest(path)
        elif path.is_file():
            raise UserError(f"{data}: must be a folder, a CSV file or a named set ({', '.join(NAMED_SETS)})")
        else:
            raise UserError(
                f"{data}: no such folder, CSV file or named set ({', '.join(NAMED_SETS)})"
                f"{near_matches(str(data), NAMED_SETS)}"
            )
    if splits is not None:
        return _repeat_splits(dataset, splits)
    if shares is None:
        return replace(dataset, splits=np.where(dataset.splits == "", "test", dataset.splits))
    if len(dataset.classes) < 2:
        raise UserError(
            f'{data}: holds one class only, "{dataset.classes[0]}"; telling classes apart takes two or more'
        )
    return _deal_out(dataset, shares, seed, data)


def _deal_out(dataset: ImageDataset, shares: dict[str, float], seed: int, data: object) -> ImageDataset:
    """Give a split to images that have none, and cut a missing val or test from train."""
    present = set(dataset.splits.tolist())
    pool = dataset.splits == ("" if "" in present else "train")
    wanted = {split: share for split, share in shares.items() if split == "train" or split not in present}
    if len(wanted) == 1 and "" not in present:
        return dataset
    counts = np.bincount(dataset.labels[pool], minlength=len(dataset.classes))
    # In root/train/… a class may be absent from train as a whole; one that is there must suffice.
    short = np.flatnonzero((counts < len(wanted)) & ((counts > 0) | ("" in present)))
    if len(short):
        others = f" (and {len(short) - 1} more classes too few)" if len(short) > 1 else ""
        raise UserError(
            f'{data}: class "{dataset.classes[short[0]]}" has {counts[short[0]]} images to be split into '
            f"{', '.join(wanted)}{others}; it takes at least {len(wanted)}, one for each"
        )
    splits = dataset.splits.astype("<U5")
    splits[pool] = cut(dataset.labels[pool], wanted, seed)
    return replace(dataset, splits=splits)


def _repeat_splits(dataset: ImageDataset, path: str | os.PathLike[str]) -> ImageDataset:
    listed = read_splits(path)
    known = {name: index for index, name in enumerate(dataset.names)}
    for name, (label, _) in listed.items():
        if name not in known:
            raise UserError(f"{path}: lists {name}, which the data do not hold")
        if dataset.classes[dataset.labels[known[name]]] != label:
            raise UserError(f"{path}: lists {name} as {label!r}, which the data hold under another class")
    kept = np.array([known[name] for name in listed], dtype=np.int64)
    if len(kept) < len(dataset):
        logger.warning("%d images that %s does not list are left out", len(dataset) - len(kept), path)
    kept.sort()
    chosen = dataset.select(kept)
    return replace(chosen, splits=np.array([listed[name][1] for name in chosen.names], dtype="<U5"))


def _named(name: str, *, download: bool) -> ImageDataset:
    classes, parts = read_named(name, download=download)
    names, splits = [], []
    for split, (_, labels) in parts.items():
        prefix = f"{name}/{split}" if split else name
        names += [f"{prefix}/{number:05d}" for number in range(len(labels))]
        splits += [split] * len(labels)
    return ImageDataset(
        classes=classes,
        names=names,
        labels=np.concatenate([labels for _, labels in parts.values()]),
        splits=np.array(splits, dtype="<U5"),
        images=np.concatenate([images for images, _ in parts.values()]),
    )


def _manifest(path: Path) -> ImageDataset:
    rows = read_rows(path, need_split=False)
    if not rows:
        raise UserError(f"{path}: lists no images")
    for name, _, _ in rows:
        if not (path.parent / name).is_file():
            raise UserError(f"{path}: lists {name}, but {path.parent / name} is not there")
    return _labeled(path.parent, rows)


def _folder(root: Path) -> ImageDataset:
    folders = _subfolders(root)
    names = {folder.name for folder in folders}
    by_split = "train" in names or (bool(names) and names <= set(SPLITS))
    split_folders = (
        [(folder.name, folder) for folder in folders if folder.name in SPLITS] if by_split else [("", root)]
    )
    rows, classes = [], set()
    for split, split_folder in split_folders:
        for class_folder in _subfolders(split_folder):
            # macOS spells é in two code points where other systems use one; it is one class all the same.
            label = unicodedata.normalize("NFC", class_folder.name)
            classes.add(label)
            for file in _image_files(class_folder, above=(root, split_folder)):
                rows.append((file.relative_to(root).as_posix(), label, split))
    if not rows:
        layout = f"{root}/{'train/' if by_split else ''}<class>/"
        raise UserError(
            f"{root}: holds no images; they must lie in {layout} and end in {', '.join(SUFFIXES)}"
        )
    return _labeled(root, rows, classes)


def _labeled(root: Path, rows: Sequence[tuple[str, str, str]], classes: Iterable[str] = ()) -> ImageDataset:
    """Images in the order of their names, from (name, label, split) rows and classes that may be empty."""
    names, labels, splits = zip(*sorted(rows), strict=True)
    every_class = tuple(sorted({*classes, *labels}))
    number = {label: position for position, label in enumerate(every_class)}
    return ImageDataset(
        classes=every_class,
        names=list(names),
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        splits=np.array(splits, dtype="<U5"),
        root=root,
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """The images in a folder at any depth, in the order of their paths; hidden ones are passed over."""
    return sorted(_image_files(folder, above=()))


def _image_files(folder: Path, above: Iterable[Path]) -> list[Path]:
    """The images at any depth, through symbolic links, each folder entered once and none of those above."""
    files = []
    seen = {_identity(parent) for parent in above}
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=_raise):
        if (identity := _identity(Path(parent))) in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return files


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
