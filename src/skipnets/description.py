"""What a model file or an export says about its classifier, as plain values that JSON can hold."""

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
    """Everything about a classifier but its weights.

    Args:
        architecture: What `skipnets.models.registry.config_to_dict` gives.
        classes: Their names, in the order of the logits.
        preprocessing: How an image becomes the network's input.
        temperature: Divides the logits where they become probabilities.
        provenance: Where the weights come from, as plain values.

    Raises:
        UserError: If these do not fit one another.
    """

    architecture: Mapping[str, Any]
    classes: Sequence[str]
    preprocessing: Preprocessing
    temperature: float
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        # By way of the config, so that an architecture of an older version is written like one of this.
        architecture = config_to_dict(config_from_dict(self.architecture))
        _check_fit(architecture, self.classes, self.preprocessing)
        check_temperature(self.temperature)
        for name, value in (
            ("architecture", architecture),
            ("classes", tuple(self.classes)),
            ("temperature", float(self.temperature)),
            ("provenance", dict(self.provenance)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, Any]) -> Self:
        """Judge what a file says.

        Raises:
            UserError: It is damaged.
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
            )
        except (UserError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged metadata ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it.

        Raises:
            UserError: If the provenance holds values that it cannot.
        """
        return {
            "architecture": dict(self.architecture),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            "provenance": plain(self.provenance),
        }


def check_temperature(temperature: object) -> None:
    """Refuse what cannot divide logits."""
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (is_number and 0 < cast(float, temperature) < math.inf):
        raise UserError(f"temperature={temperature!r}: must be a positive number")


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays and tuples as lists, paths as text, what is not finite as null.

    Raises:
        UserError: It is none of these.
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
    raise UserError(f"provenance must hold plain values, not {type(value).__name__} ({value!r})")


def _check_fit(architecture: Mapping[str, Any], classes: Sequence[str], preprocessing: Preprocessing) -> None:
    """Refuse names, sizes and channels that do not belong together."""
    config = config_from_dict(architecture)
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise UserError("classes must be a list of names, at least one")
    if len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise UserError(f"classes must differ from one another; twice: {', '.join(twice)}")
    if len(classes) != config.num_classes:
        raise UserError(f"{len(classes)} classes for a network with {config.num_classes} outputs")
    if preprocessing.channels != config.in_chans:
        raise UserError(
            f"preprocessing makes {preprocessing.channels} channels, "
            f"{config.name} takes in_chans={config.in_chans}"
        )
    if min(preprocessing.size) < config.smallest_size:
        height, width = preprocessing.size
        raise UserError(
            f"preprocessing makes images of {height}×{width}; "
            f"the smallest that {config.name} takes is {config.smallest_size}×{config.smallest_size}"
        )
