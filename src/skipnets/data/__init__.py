"""Datasets of images: their labels and splits, and the way from a file to a batch.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.data.dataset import ImageDataset
    from skipnets.data.decoding import ImageDecodeError, open_image
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.data.sharding import write_shards
    from skipnets.data.sources import open_dataset


__all__ = ["ImageDataset", "ImageDecodeError", "Preprocessing", "open_dataset", "open_image", "write_shards"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ImageDataset": "sources",
        "Preprocessing": "preprocessing",
        "ImageDecodeError": "decoding",
        "open_image": "decoding",
        "open_dataset": "sources",
        "write_shards": "sharding",
    },
    extra="train",
)
