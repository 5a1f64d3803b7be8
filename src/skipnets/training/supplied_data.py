"""Images that a program hands to `train`: any sequence of (image, label), as an `ImageDataset`.

Signals (L,) and volumes (D, H, W) become a `VolumeDataset`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from skipnets.axes import AXES, INPUTS, worded
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError, source_name
from skipnets.data.listing import Listing, counted
from skipnets.data.splits import SPLITS, find_shares
from skipnets.data.splitting import deal_out
from skipnets.data.volume_files import read_volume
from skipnets.data.volumes import VolumeDataset, with_channels
from skipnets.errors import UserError, listed, one_line
from skipnets.machine import available_memory
from skipnets.training.config import TrainConfig

__all__ = ["Images", "Samples", "as_dataset", "given_dataset"]


class Samples(Protocol):
    """A map-style data set: `samples[index]` is (image, label).

    An image is a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W), all of one size; of uint8,
    or of floats from 0 to 1. A signal is an array (L,) or (L, C), or a tensor (C, L); a volume is an array
    (D, H, W) or (D, H, W, C), or a tensor (C, D, H, W): of uint8, or of any numbers, NaN where there is none.

    A label is a class's number, where there is an attribute `classes` with their names as torchvision's data
    sets have, in this split or in another one, or else the name itself.
    """

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...

    def __len__(self) -> int: ...


Images = ImageDataset | Samples | Mapping[str, Samples]


def given_dataset(config: TrainConfig, images: Images, *, dims: int | None = None) -> ImageDataset:
    """The images of a run, with its splits: those that they come with, or drawn as the configuration says.

    Args:
        config: The run's.
        images: As they were handed over.
        dims: As of `as_dataset`.

    Raises:
        UserError: They are wrong, or there are none to learn from or to choose the best epoch on.
    """
    found = with_channels(as_dataset(images, dims=dims), config.channels)
    if found.regression and len(empty := np.flatnonzero(np.isnan(found.labels).all(1))):
        raise UserError(
            f"dataset: {found.counted(len(empty))} without any number, such as {found.names[empty[0]]}; "
            "leave them out"
        )
    dataset = deal_out(found, find_shares(config.fractions or "auto"), config.seed, "dataset")
    for name, purpose in (("train", "learn from"), ("val", "choose the best epoch on")):
        if not len(dataset.split(name)):
            nothing = worded("there are no images", dataset.dims)
            raise UserError(f"dataset: {nothing} to {purpose} (the split {name} is empty)")
    return dataset


def as_dataset(images: Images, *, dims: int | None = None) -> ImageDataset:
    """Read all images into memory; their split is "" where they do not come with one.

    Args:
        images: As they were handed over.
        dims: Spatial axes that the network takes; None where it takes what there is: volumes where these have
            four axes with their channels, else images.

    Raises:
        UserError: An image cannot be used, they differ in size, or there is no memory for them.
    """
    if isinstance(images, ImageDataset):
        # What is said of a run's splits is said of this run, and not of the program's data set.
        listing = images.listing
        listing = dataclasses.replace(listing, notes=[*listing.notes], warnings=[*listing.warnings])
        return dataclasses.replace(images.checked(), listing=listing)
    parts = dict(images) if isinstance(images, Mapping) else {"": images}
    if unknown := sorted(set(parts) - {*SPLITS, ""}):
        raise UserError(f"dataset: has no splits {listed(unknown)}; they are {', '.join(SPLITS)}")
    names: list[str] = []
    splits: list[str] = []
    pixels: list[NDArray[Any]] = []
    labels: list[str] = []
    for samples in parts.values():
        _check_sequence(samples)
    if dims is None:
        dims = _dims(parts)
    stated = {split: [str(name) for name in _classes(samples) or ()] for split, samples in parts.items()}
    order = list(dict.fromkeys(name for classes in stated.values() for name in classes))
    for split, samples in parts.items():
        classes = stated[split] or order
        for index in range(len(samples)):
            name = f"{split or 'dataset'}[{index}]"
            image, label = _pair(samples, index, name)
            pixels.append(_pixels(image, name) if dims == 2 else _values(image, name, dims))
            labels.append(_class_name(label, classes, name))
            names.append(f"{split or 'dataset'}/{index:05d}")
            splits.append(split)
            if index == 0:
                _check_memory(pixels[-1].nbytes * len(samples))
    if not pixels:
        raise UserError(f"dataset: holds no {INPUTS[dims]}")
    shapes = sorted({each.shape for each in pixels})
    if len(shapes) != 1:
        found = listed(["×".join(map(str, shape)) for shape in shapes], 3)
        hint = "; a folder or a manifest takes any sizes"
        raise UserError(f"dataset: its {INPUTS[dims]} must be of one size, not {found}{hint}")
    order = order or sorted(set(labels), key=_numbers_first)
    number = {name: position for position, name in enumerate(order)}
    stacked = np.stack(pixels)
    layout = "a program's data set"
    if dims != 2:
        sides = "×".join(map(str, stacked.shape[1:-1]))
        layout += f" of {INPUTS[dims]}, {sides}, {counted(stacked.shape[-1], 'channel')}"
    of_kind = ImageDataset if dims == 2 else functools.partial(VolumeDataset, axes=dims)
    return of_kind(
        classes=tuple(order),
        names=names,
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        splits=np.array(splits, dtype="<U5"),
        images=stacked,
        listing=Listing(layout=layout),
    )


def _check_sequence(samples: Any) -> None:
    if not hasattr(samples, "__len__") or not hasattr(samples, "__getitem__"):
        hint = ", such as its dataset" if hasattr(samples, "dataset") else ""
        raise UserError(
            f"dataset: must be a sequence of (image, label) with a length{hint}, not {type(samples).__name__}"
        )


def _pair(samples: Samples, index: int, name: str) -> tuple[Any, Any]:
    """An image and its label."""
    try:
        sample: Any = samples[index]
    except UserError:
        raise
    except Exception as error:  # a user's data set, which may raise anything
        raise UserError(f"dataset: {name} fails ({one_line(error)})") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        length = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
        raise UserError(f"dataset: {name} must be (image, label), not {type(sample).__name__}{length}")
    return sample[0], sample[1]


def _classes(samples: Any) -> Sequence[str] | None:
    """Names of the classes, also of a part of a data set, such as `torch.utils.data.random_split` makes."""
    names: Sequence[str] | None = getattr(samples, "classes", None)
    inner = getattr(samples, "dataset", None)
    return _classes(inner) if names is None and inner is not None else names


def _numbers_first(label: str) -> tuple[float, str]:
    """Sorts numbers as such: 2 before 10, so that their order is that of the outputs."""
    return (int(label) if label.isdecimal() else math.inf, label)


def _dims(parts: Mapping[str, Samples]) -> int:
    """Spatial axes of the first image, where no network gives them."""
    for split, samples in parts.items():
        if len(samples):
            image, _ = _pair(samples, 0, f"{split or 'dataset'}[0]")
            return 3 if getattr(image, "ndim", 2) == 4 else 2
    return 2


def _values(volume: Any, name: str, dims: int) -> NDArray[Any]:
    """(L, C) or (D, H, W, C): bytes, or floats."""
    axes = f"({AXES[dims]}{',' if dims == 1 else ''})"
    if isinstance(volume, torch.Tensor):
        array = volume.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == dims + 1 else array
    elif isinstance(volume, np.ndarray):
        array = volume
    else:
        raise UserError(f"dataset: {name} must be an array or a tensor, not {type(volume).__name__}")
    array = array[..., None] if array.ndim == dims else array
    if array.ndim != dims + 1 or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise UserError(
            f"dataset: {name} must be {axes} of numbers, or have channels as well, for dims={dims}, not "
            f"{array.dtype} of shape {tuple(volume.shape)}"
        )
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            array = array.astype(np.float32)
    try:
        read_volume(array, dims, array.shape[-1])
    except ImageDecodeError as error:
        reason = str(error).removeprefix(f"{source_name(array)}: ")
        raise UserError(f"dataset: {name} {reason}") from error
    return array


def _class_name(label: Any, classes: Sequence[str], name: str) -> str:
    """The name of a label's class; without classes that are known, the label is its name."""
    scalar = isinstance(label, torch.Tensor | np.ndarray | np.generic) and label.shape in ((), (1,))
    number = label.item() if scalar else label
    if not isinstance(number, int | float | str):
        raise UserError(
            f"dataset: {name}: a label must be a class, its number or name, not {type(label).__name__}; "
            "several labels or numbers of an image take an ImageDataset"
        )
    if isinstance(number, float) and not number.is_integer():
        raise UserError(
            f"dataset: {name}: label {number!r} must be a class; numbers to predict take an ImageDataset "
            "with regression=True"
        )
    if isinstance(number, bool | float):
        number = int(number)
    if not classes or (isinstance(number, str) and number in classes):
        return str(number)
    if not isinstance(number, int) or not 0 <= number < len(classes):
        raise UserError(
            f"dataset: {name}: label {number!r} must be a number from 0 to {len(classes) - 1} or one of "
            f"{listed(classes)}"
        )
    return classes[number]


def _pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) bytes."""
    if isinstance(image, Image.Image):
        array: NDArray[Any] = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    elif isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise UserError(
            f"dataset: {name} must be a PIL image, an array or a tensor, not {type(image).__name__}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.kind == "f" and bool(((array >= 0) & (array <= 1)).all()):
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UserError(
            f"dataset: {name} must be (H, W) or (H, W, C) of uint8, or of floats from 0 to 1, not "
            f"{array.dtype} of shape {array.shape}; normalization and augmentation are the run's"
        )
    return array


def _check_memory(wanted: int) -> None:
    free = available_memory()
    if free is not None and wanted > 0.8 * free:
        raise UserError(
            f"dataset: its images take {wanted >> 20:,} MiB, of which {free >> 20:,} are free; a folder or a "
            "manifest is read from disk"
        )
