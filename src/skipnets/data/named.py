"""Data sets that have a name: one that comes with scikit-learn, the rest through torchvision.

Nothing is downloaded unless asked for. What is there is looked for in the folder that the environment
variable SKIPNETS_DATA names, else in ~/.cache/skipnets.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, needs_extra, one_line

# split → ((N, H, W) or (N, H, W, C) uint8 images, (N,) int64 labels); split "" where the set has none.
Parts = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_DIGITS = tuple("0123456789")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def data_folder() -> Path:
    """Where named datasets lie and downloads go."""
    return Path(os.environ.get("SKIPNETS_DATA") or Path.home() / ".cache" / "skipnets")


def read_named(name: str, *, download: bool) -> tuple[tuple[str, ...], Parts]:
    """The classes and the images of a named dataset.

    Raises:
        UserError: Its files are not there (the message says which and where), damaged, or could not be
            downloaded.
    """
    return NAMED_SETS[name](download)


def _digits() -> tuple[tuple[str, ...], Parts]:
    with needs_extra("train"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    # Sixteen gray levels, in which 16 is white.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _DIGITS, {"": (pixels, digits.target.astype(np.int64))}


def _mnist(download: bool) -> tuple[tuple[str, ...], Parts]:
    return _DIGITS, _idx_parts("mnist", "MNIST", [], download)


def _fashion_mnist(download: bool) -> tuple[tuple[str, ...], Parts]:
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    return classes, _idx_parts("fashion-mnist", "FashionMNIST", [DEBIAN_FASHION_MNIST], download)


def _idx_parts(name: str, torchvision_name: str, elsewhere: list[Path], download: bool) -> Parts:
    home = data_folder() / torchvision_name / "raw"
    folder = next((folder for folder in (home, *elsewhere) if _idx_complete(folder)), None)
    if folder is None:
        files = ", ".join(f"{file}.gz" for pair in _IDX_FILES.values() for file in pair)
        with _torchvision_dataset(name, torchvision_name, home, files, download) as dataset:
            dataset(data_folder(), download=True)
        folder = home
    return {
        split: (_read_idx(folder / dataset), _read_idx(folder / labels).astype(np.int64))
        for split, (dataset, labels) in _IDX_FILES.items()
    }


def _idx_complete(folder: Path) -> bool:
    files = [folder / file for pair in _IDX_FILES.values() for file in pair]
    return all(file.exists() or file.with_name(f"{file.name}.gz").exists() for file in files)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes (http://yann.lecun.com/exdb/mnist), also compressed with gzip."""
    zipped = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
        dimensions = content[3]
        shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UserError(f"{path if path.exists() else zipped}: not a whole IDX file ({error})") from error


def _cifar(name: str, torchvision_name: str, download: bool) -> tuple[tuple[str, ...], Parts]:
    datasets = _torchvision_datasets()
    dataset = getattr(datasets, torchvision_name)
    home = data_folder()
    # The archive alone is enough: torchvision checks its hash and unpacks it without the network.
    unpack = datasets.utils.check_integrity(home / dataset.filename, dataset.tgz_md5)
    unpacked = (home / dataset.base_folder).is_dir()
    with _torchvision_dataset(name, torchvision_name, home, dataset.filename, download or unpack or unpacked):
        sets = {
            split: dataset(home, train=split == "train", download=download or unpack) for split in _IDX_FILES
        }
    parts = {split: (part.data, np.array(part.targets, dtype=np.int64)) for split, part in sets.items()}
    return tuple(sets["train"].classes), parts


def _svhn(download: bool) -> tuple[tuple[str, ...], Parts]:
    home = data_folder() / "svhn"
    files = ("train_32x32.mat", "test_32x32.mat")
    present = all((home / file).exists() for file in files)
    with _torchvision_dataset("svhn", "SVHN", home, ", ".join(files), download or present) as dataset:
        sets = {split: dataset(home, split=split, download=download) for split in _IDX_FILES}
    parts = {
        split: (np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), part.labels.astype(np.int64))
        for split, part in sets.items()
    }
    return _DIGITS, parts


def _torchvision_datasets() -> Any:
    with needs_extra("train"):
        from torchvision import datasets
    return datasets


@contextlib.contextmanager
def _torchvision_dataset(name: str, torchvision_name: str, home: Path, files: str, go: bool) -> Iterator[Any]:
    """The set's class in torchvision; any failure becomes one line that says which file to put where."""
    remedy = f"put {files} into {home}, or allow the download (--download, download=True)"
    if not go:
        raise UserError(f"{name} is not on this machine: {remedy}")
    dataset = getattr(_torchvision_datasets(), torchvision_name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield dataset
    except (OSError, RuntimeError) as error:  # no network, wrong checksum
        raise UserError(f"{name} could not be read ({one_line(error)}): {remedy}") from error


NAMED_SETS: dict[str, Callable[[bool], tuple[tuple[str, ...], Parts]]] = {
    "digits": lambda download: _digits(),  # noqa: ARG005 (it comes with scikit-learn)
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": lambda download: _cifar("cifar10", "CIFAR10", download),
    "cifar100": lambda download: _cifar("cifar100", "CIFAR100", download),
    "svhn": _svhn,
}
