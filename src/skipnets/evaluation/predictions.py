"""Read the predictions that `Evaluation.save` wrote.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

__all__ = ["read_predictions"]

# The smallest float32 above zero, in place of probabilities that were rounded to 0.
_LEAST = 2.0**-149


def read_predictions(
    path: Path, classes: Sequence[str]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Names of the images, their labels (N,), and the logarithms of the probabilities (N, K).

    Args:
        path: A predictions.parquet.
        classes: The K classes, as in evaluation.json.

    Raises:
        KeyError: If the table has other columns or labels.
    """
    table = pyarrow.parquet.read_table(path)
    number = {name: index for index, name in enumerate(classes)}
    probabilities = np.stack([table[f"p:{name}"].to_numpy() for name in classes], axis=1).astype(np.float64)
    labels = np.array([number[label] for label in table["label"].to_pylist()], dtype=np.int64)
    return table["path"].to_pylist(), labels, np.log(np.maximum(probabilities, _LEAST))
