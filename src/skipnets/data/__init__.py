"""Pictures, their labels and splits, and the way from a file to a batch.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets.data.decoding import UndecodablePicture, open_picture
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.data.sources import Pictures, open_pictures

_HOME = {
    "Pictures": "sources",
    "Preprocessing": "preprocessing",
    "UndecodablePicture": "decoding",
    "open_picture": "decoding",
    "open_pictures": "sources",
}

__all__ = ["Pictures", "Preprocessing", "UndecodablePicture", "open_picture", "open_pictures"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
