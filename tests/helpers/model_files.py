"""Model files that are changed behind the library's back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray


def rewrite(
    path: Path, *, metadata: object = None, tensors: dict[str, NDArray[np.generic]] | None = None
) -> None:
    """Replace the metadata or the tensors of a model file."""
    with safetensors.safe_open(path, "numpy") as file:
        old = file.metadata()["skipnets"]
    text = old if metadata is None else metadata if isinstance(metadata, str) else json.dumps(metadata)
    safetensors.numpy.save_file(
        tensors or safetensors.numpy.load_file(path), path, metadata={"skipnets": text}
    )


def metadata_of(path: Path) -> dict[str, object]:
    """The metadata of a model file."""
    with safetensors.safe_open(path, "numpy") as file:
        return dict(json.loads(file.metadata()["skipnets"]))
