"""Convert image arguments (paths, folders, patterns, PIL images, arrays, tensors) to named sources.

Batches that are given as an array or a tensor are checked here, too.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from skipnets.data.decoding import Page
from skipnets.data.raster import WindowedImage
from skipnets.data.sources import images_below
from skipnets.data.streams import SHARD_SUFFIXES
from skipnets.errors import UserError
from skipnets.models.registry import AXES

if TYPE_CHECKING:
    import torch

    from skipnets.data.decoding import Source
    from skipnets.data.loading import ImageBatch
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.runtimes.runtime import InputType

    Image = str | os.PathLike[str] | PIL.Image.Image | NDArray[Any] | torch.Tensor | Page | WindowedImage
    Images = Image | Iterable[Image]

__all__ = ["checked_batch", "empty_batch", "expand", "is_tensor", "named_sources", "readable"]


def named_sources(inputs: Images, preprocessing: Preprocessing | None = None) -> Iterator[tuple[str, Source]]:
    """Yield each image with a name: its path, or "[3]" for the fourth input if that is not a path.

    Args:
        inputs: One or more images; folders and patterns are expanded.
        preprocessing: What they are for: it knows how many bands an array has, and whether there is a window;
            and the size of signals and volumes.

    Raises:
        UserError: If a folder or pattern has no images.
    """
    if not _is_one(inputs, preprocessing):
        if not isinstance(inputs, Iterable):
            kinds = "paths, PIL images, arrays or tensors"
            raise UserError(f"images: must be {kinds}, not {type(inputs).__name__}")
        return _named(cast("Iterable[Image]", inputs), preprocessing)
    paths = expand(inputs) if isinstance(inputs, str | os.PathLike) else None
    return _named([cast("Image", inputs)] if paths is None else cast("list[Image]", paths), preprocessing)


def expand(path: str | os.PathLike[str]) -> list[str]:
    """Expand a path to files: those in a folder, those that match a pattern, or the path itself.

    Raises:
        UserError: If the folder has no images, or nothing matches the pattern.
    """
    path = os.fspath(path)
    if Path(path).is_dir():
        found = [str(image) for image in images_below(Path(path))]
        if not found:
            sharded = any(file.name.lower().endswith(SHARD_SUFFIXES) for file in Path(path).rglob("*"))
            hint = (
                ", but tar or Parquet files; skipnets predict --output FOLDER/ reads these" if sharded else ""
            )
            raise UserError(f"images: {path} holds no images{hint}")
        return found
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute patterns work, too
    if not matches:
        raise UserError(f"images: no file matches {path}")
    return [image for match in matches for image in expand(match)]


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a torch tensor, without importing torch."""
    loaded = sys.modules.get("torch")
    return loaded is not None and isinstance(value, loaded.Tensor)


def checked_batch(
    batch: NDArray[Any] | torch.Tensor, preprocessing: Preprocessing, input_type: InputType
) -> NDArray[Any]:
    """A preprocessed batch as an array that a runtime takes.

    Args:
        batch: (N, C, H, W), or that of signals or volumes.
        preprocessing: What it went through.
        input_type: What the network takes: "float32", or "uint8" if it normalizes.

    Raises:
        UserError: If the batch has another shape, or is normalized although the network normalizes.
    """
    array = batch.detach().cpu().numpy() if is_tensor(batch) else batch
    channels, dims = preprocessing.channels, preprocessing.dims
    wanted = f"(N, {channels}, {AXES[dims]})"
    if not isinstance(array, np.ndarray):
        raise UserError(f"batch: must be an array or tensor {wanted}, not {type(batch).__name__}")
    if array.ndim != 2 + dims or array.shape[1] != channels:
        raise UserError(f"batch: must be {wanted}, not {array.shape}")
    if input_type == "float32":
        return np.asarray(array, np.float32)
    if array.dtype != np.uint8:
        raise UserError(f"batch: must be uint8 pixels, which this network normalizes, not {array.dtype}")
    return np.asarray(array)


def empty_batch(preprocessing: Preprocessing, input_type: InputType, *, images: int = 0) -> NDArray[Any]:
    """A batch of zeros, (images, C, H, W)."""
    return np.zeros((images, preprocessing.channels, *preprocessing.size), input_type)


def readable(batch: ImageBatch) -> NDArray[Any]:
    """The images of a batch, (N, C, H, W).

    Raises:
        UserError: If one of them could not be read.
    """
    for name, error in batch.outcomes():
        if error is not None:
            raise UserError(error if name in error else f"{name}: {error}")
    return batch.inputs


def _is_one(inputs: object, preprocessing: Preprocessing | None) -> bool:
    """Whether inputs are a single image or path."""
    channels = 3 if preprocessing is None else preprocessing.channels
    if preprocessing is not None and preprocessing.dims != 2:
        if isinstance(inputs, np.ndarray):
            return inputs.shape in (preprocessing.size, (*preprocessing.size, channels))
        if is_tensor(inputs):
            return tuple(inputs.shape) in (preprocessing.size, (channels, *preprocessing.size))
    if isinstance(inputs, np.ndarray):
        return inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[2] in (1, 3, 4, channels))
    if is_tensor(inputs):
        return inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[0] in (1, 3, 4, channels))
    return isinstance(inputs, str | bytes | os.PathLike | PIL.Image.Image | Page | WindowedImage)


def _named(inputs: Iterable[Image], preprocessing: Preprocessing | None) -> Iterator[tuple[str, Source]]:
    for index, image in enumerate(inputs):
        if isinstance(image, str | os.PathLike):
            yield from ((path, path) for path in expand(image))
            continue
        if isinstance(image, Page):
            yield str(image), image
            continue
        if isinstance(image, PIL.Image.Image):
            # It may be listed twice, and two threads must not decode it at once. Errors recur on reading.
            with contextlib.suppress(Exception):
                image.load()
        yield (
            f"[{index}]",
            _array_from_tensor(image, preprocessing) if is_tensor(image) else cast("Source", image),
        )


def _array_from_tensor(tensor: torch.Tensor, preprocessing: Preprocessing | None) -> NDArray[Any]:
    """(C, H, W) or (H, W) tensor of uint8, or of floats from 0 to 1 → (H, W, C) or (H, W) uint8.

    Where the preprocessing has a window, numbers are values of that and stay as they are. Of signals and
    volumes the channels become the last axis, too.
    """
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.ndim == 1 + (2 if preprocessing is None else preprocessing.dims):
        array = np.moveaxis(array, 0, -1)
    if preprocessing is not None and preprocessing.window is not None:
        return array
    # Floats out of range, and NaN, are passed on: the reader refuses them.
    from_0_to_1 = array.dtype.kind == "f" and bool(((array >= 0) & (array <= 1)).all())
    return np.rint(array * 255).astype(np.uint8) if from_0_to_1 else array
