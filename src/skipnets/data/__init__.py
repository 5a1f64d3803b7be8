"""ImageDataset, their labels and splits, and the way from a file to a batch.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets.data.decoding import ImageDecodeError, open_image
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.data.sources import ImageDataset, open_dataset

_MODULES = {
    "ImageDataset": "sources",
    "Preprocessing": "preprocessing",
    "ImageDecodeError": "decoding",
    "open_image": "decoding",
    "open_dataset": "sources",
}

__all__ = ["ImageDataset", "ImageDecodeError", "Preprocessing", "open_dataset", "open_image"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
