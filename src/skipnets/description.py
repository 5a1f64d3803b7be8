"""The metadata of a classifier in a model file or an export: validation, and conversion to JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.registry import config_from_dict, config_to_dict

__all__ = ["Description", "plain"]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A classifier's metadata: everything but its weights.

    Args:
        architecture: From `skipnets.models.registry.config_to_dict`.
        classes: Names of the classes, in the order of the logits.
        preprocessing: How an image becomes the network's input.
        temperature: Divides the logits before the softmax.
        provenance: Where the weights come from, as plain values.
        members: Number of networks of this architecture whose probabilities are averaged.

    Raises:
        UserError: If the arguments do not match one another.
    """

    architecture: Mapping[str, Any]
    classes: Sequence[str]
    preprocessing: Preprocessing
    temperature: float
    provenance: Mapping[str, Any]
    members: int = 1

    def __post_init__(self) -> None:
        # Converted to a config and back, so that an architecture of an older version is upgraded.
        architecture = config_to_dict(config_from_dict(self.architecture))
        _check_fit(architecture, self.classes, self.preprocessing)
        check_temperature(self.temperature)
        if not isinstance(self.members, int) or isinstance(self.members, bool) or self.members < 1:
            raise UserError(f"members={self.members!r}: must be a number of networks, at least 1")
        for name, value in (
            ("architecture", architecture),
            ("classes", tuple(self.classes)),
            ("temperature", float(self.temperature)),
            ("provenance", dict(self.provenance)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, Any]) -> Self:
        """Validate the metadata of a file.

        Raises:
            UserError: If they are damaged.
        """
        try:
            for key, kind in (
                ("architecture", dict),
                ("classes", list),
                ("preprocessing", dict),
                ("provenance", dict),
            ):
                if not isinstance(metadata.get(key), kind):
                    raise UserError(f"{key} is missing or of the wrong type")
            return cls(
                architecture=metadata["architecture"],
                classes=metadata["classes"],
                preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
                temperature=metadata.get("temperature", 1.0),
                provenance=metadata["provenance"],
                members=metadata.get("members", 1),
            )
        except (UserError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged metadata ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON.

        Raises:
            UserError: If the provenance holds values that JSON cannot represent.
        """
        return {
            "architecture": dict(self.architecture),
            **({"members": self.members} if self.members > 1 else {}),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            "provenance": plain(self.provenance),
        }


def check_temperature(temperature: object) -> None:
    """Check that a temperature is a positive number."""
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (is_number and 0 < cast(float, temperature) < math.inf):
        raise UserError(f"temperature={temperature!r}: must be a positive number")


def plain(value: Any) -> Any:
    """Convert a value for JSON: arrays and tuples to lists, paths to text, NaN and infinity to null.

    Raises:
        UserError: If JSON cannot represent it.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(f"provenance: must hold plain values, not {type(value).__name__} ({value!r})")


def _check_fit(architecture: Mapping[str, Any], classes: Sequence[str], preprocessing: Preprocessing) -> None:
    """Check that classes, sizes and channels match the architecture."""
    config = config_from_dict(architecture)
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise UserError("classes: must be a list of at least one name")
    if len(set(classes)) != len(classes):
        repeated = sorted({name for name in classes if list(classes).count(name) > 1})
        raise UserError(f"classes: must be unique; repeated: {', '.join(repeated)}")
    if len(classes) != config.num_classes:
        raise UserError(f"classes: must be {config.num_classes}, the network's outputs, not {len(classes)}")
    if preprocessing.channels != config.in_chans:
        raise UserError(
            f"preprocessing: must give in_chans={config.in_chans} channels for {config.name}, "
            f"not {preprocessing.channels}"
        )
    if min(preprocessing.size) < config.smallest_size:
        height, width = preprocessing.size
        raise UserError(
            f"preprocessing: must give images of at least {config.smallest_size}×{config.smallest_size} "
            f"for {config.name}, not {height}×{width}"
        )
