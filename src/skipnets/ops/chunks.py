"""Processing feature maps a few images at a time, so that intermediate values stay in the cache.

Shapes: N images, H height, W width, C channels; a map (N, C, H, W) in channels-last order is, without a
    copy, a matrix of M = N·H·W rows (positions) and C columns (channels). The same holds for those of
    signals (N, C, L) and volumes (N, C, D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from skipnets.ops.memory import LARGE_BYTES, MEMORY

CHUNK_BYTES = 4 << 20
"""Size of the widest matrix of a chunk, of a layer of mean width in a dense block; two or three of them are
in use at once. Halving it fits the caches better and costs as much in calls."""

GPU_CHUNK_BYTES = 256 << 20
"""The same on a GPU: large enough to keep it busy, small beside what a block keeps."""


@dataclass(frozen=True)
class MapShape:
    """The shape of feature maps without their channels.

    Args:
        images: N.
        sides: (H, W) of images, (L,) of signals, (D, H, W) of volumes.
    """

    images: int
    sides: tuple[int, ...]

    @classmethod
    def of(cls, maps: Tensor) -> MapShape:
        """Of (N, C, H, W) maps."""
        return cls(maps.shape[0], tuple(maps.shape[2:]))

    @property
    def height(self) -> int:
        """Of images."""
        return self.sides[-2]

    @property
    def width(self) -> int:
        """Of images."""
        return self.sides[-1]

    @property
    def area(self) -> int:
        """Positions of one image, H·W."""
        return math.prod(self.sides)

    @property
    def rows(self) -> int:
        """Positions of all images, M = N·H·W."""
        return self.images * self.area

    def chunks(self, columns: int, itemsize: int, device: torch.device | None = None) -> Iterator[slice]:
        """Split the rows between images so that a matrix with `columns` takes about `CHUNK_BYTES` a chunk.

        All chunks but the last are equally large.

        Args:
            columns: Columns of the widest matrix that is made for a chunk.
            itemsize: Bytes of one value.
            device: Where the matrix is. Chunks that suit a CPU's cache would keep a GPU waiting for calls:
                there they take `GPU_CHUNK_BYTES`.
        """
        size = CHUNK_BYTES if device is None or device.type == "cpu" else GPU_CHUNK_BYTES
        wanted = self.images * self.area * columns * itemsize / size
        count = min(max(round(wanted), 1), self.images)
        step = math.ceil(self.images / count) * self.area
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))


def as_matrix(maps: Tensor) -> Tensor:
    """(N, C, H, W) → (N·H·W, C); a view where the maps are in channels-last order, else a copy."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def as_maps(matrix: Tensor, shape: MapShape) -> Tensor:
    """(n·H·W, C) with whole images → (n, C, H, W) in channels-last order, without a copy."""
    return matrix.view(-1, *shape.sides, matrix.shape[1]).movedim(-1, 1)


def empty_maps(shape: MapShape, channels: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialized (N, C, H, W) maps in channels-last order on the device of `like`."""
    size = (shape.images, channels, *shape.sides)
    places = [channels * math.prod(shape.sides[axis + 1 :]) for axis in range(len(shape.sides))]
    strides = (shape.area * channels, 1, *places)
    nbytes = shape.rows * channels * dtype.itemsize
    if like.device.type == "cpu" and nbytes >= LARGE_BYTES:
        return torch.empty(0, dtype=dtype, device="cpu").set_(MEMORY.storage(nbytes), 0, size, strides)
    return torch.empty_strided(size, strides, dtype=dtype, device=like.device)


def is_channels_last(maps: Tensor) -> bool:
    """Whether (N, C, H, W) maps lie in channels-last order."""
    return maps.movedim(1, -1).is_contiguous()


def empty_tensor_like(tensor: Tensor) -> Tensor:
    """An uninitialized dense tensor of the same shape, memory format and device."""
    if tensor.device.type == "cpu" and tensor.nbytes >= LARGE_BYTES:
        made = torch.empty_like(tensor, device="meta")
        storage = MEMORY.storage(tensor.nbytes)
        return torch.empty(0, dtype=tensor.dtype, device="cpu").set_(storage, 0, made.shape, made.stride())
    return torch.empty_like(tensor)


class Workspace:
    """Buffers for the intermediate values of a chunk, reused for the next chunk.

    It belongs to one call of one operation and is never shared, so nothing here needs a lock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._storage: dict[str, Tensor] = {}

    def matrix(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An uninitialized contiguous matrix (m, C); it replaces the last one of this name."""
        size = shape.numel()
        storage = self._storage.get(name)
        if storage is None or storage.numel() < size or storage.dtype != dtype:
            storage = self._storage[name] = torch.empty(size, dtype=dtype, device=self._device)
        return storage[:size].view(shape)
