"""Weights as they are read from a source, with what the source says of the network's input and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from skipnets.errors import listed

__all__ = ["Checkpoint", "PublishedInput", "PublishedLabels"]


@dataclass(frozen=True, kw_only=True)
class PublishedInput:
    """The preprocessing that published weights were evaluated with.

    Args:
        size: Height and width of the network's input, in pixels.
        resize_size: The shorter side, in pixels, to which images are resized before the center of `size`
            is cut out; None where they are not cropped.
        mean: Mean per channel, for values from 0 to 1.
        std: Standard deviation per channel, for values from 0 to 1.
        interpolation: "bilinear", "bicubic", …
        further: Other fields of `skipnets.Preprocessing`, such as `fit` and `window`, of a model file.
    """

    size: tuple[int, int]
    resize_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    further: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        resized = "" if self.resize_size is None else f"shorter side {self.resize_size}, center "
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return (
            f"input: {resized}{self.size[0]}×{self.size[1]}, {self.interpolation}, mean ({mean}), std ({std})"
        )

    def for_channels(self, channels: int) -> PublishedInput:
        """Adapt the preprocessing to another number of input channels, like the first convolution."""

        def fitted(values: tuple[float, ...]) -> tuple[float, ...]:
            if channels == 1:
                return (math.fsum(values) / len(values),)
            return tuple(values[channel % len(values)] for channel in range(channels))

        if channels == len(self.mean):
            return self
        further = {name: value for name, value in self.further.items() if name != "shown_channels"}
        window = further.get("window")
        if window is not None and not isinstance(window, str):  # a pair a channel; a text is each file's own
            low, high = map(fitted, zip(*window, strict=True))
            further["window"] = tuple(zip(low, high, strict=True))
        return replace(self, mean=fitted(self.mean), std=fitted(self.std), further=further)

    def to_preprocessing(self) -> dict[str, Any]:
        """The fields of `skipnets.Preprocessing`."""
        cropped = self.resize_size is not None
        return {
            "size": self.size,
            "fit": "crop" if cropped else "stretch",
            "crop_fraction": min(self.size) / (self.resize_size or 1) if cropped else 1.0,
            "channels": len(self.mean),
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            **self.further,
        }

    def to_timm(self) -> dict[str, Any]:
        """The fields of timm's `pretrained_cfg`."""
        return {
            "input_size": (len(self.mean), *self.size),
            "fixed_input_size": False,
            "interpolation": self.interpolation,
            "crop_pct": min(self.size) / (self.resize_size or min(self.size)),
            "crop_mode": "center",
            "mean": self.mean,
            "std": self.std,
        }


@dataclass(frozen=True, kw_only=True)
class PublishedLabels:
    """What the outputs of published weights stand for, each a label that an image may have or not.

    Args:
        names: In the order of the outputs.
        thresholds: The probability from which on each label counts as present, from 0 to 1.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]

    def __str__(self) -> str:
        return f"labels: {listed(self.names, 20)}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights read from a source.

    Args:
        source: Its name, for messages.
        tensors: Tensors by the source's names.
        ordered: Whether `tensors` are in the order in which the model made them, not sorted by name.
        input: How images are preprocessed, where the source says so.
        labels: What the outputs stand for, where the source says so.
        task: What the outputs are, as of `skipnets.Classifier`, where the source says so.
        network: Registry name of the source's network, where the source says so.
        fields: Fields of the configuration in which the source's network differs from others of its name;
            `create_model` takes them where they are not given.
        has_state: Whether state of metrics and losses may stand beside the network's tensors.
        notes: Remarks for the report.
    """

    source: str
    tensors: dict[str, Tensor]
    ordered: bool
    input: PublishedInput | None = None
    labels: PublishedLabels | None = None
    task: str | None = None
    network: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    has_state: bool = False
    notes: tuple[str, ...] = ()
