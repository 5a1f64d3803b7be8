"""Resolve an architecture from a registry name, a model file, a run folder or a model."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipnets.classifier import Classifier, describe
from skipnets.errors import UserError, check_path, near_matches
from skipnets.models.backbone import Backbone
from skipnets.models.family import network_graph
from skipnets.models.graph import Graph
from skipnets.models.registry import REGISTRY, ModelConfig, config_from_dict, model_config

Source = str | os.PathLike[str] | ModelConfig | Backbone[Any] | Classifier


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network's configuration and default input size, without weights.

    Attributes:
        config: Its configuration.
        input_size: Default height and width of the images; length of signals; depth, height and width of
            volumes.
        members: Number of networks of this architecture in an ensemble.
    """

    config: ModelConfig
    input_size: tuple[int, ...]
    members: int = 1

    @functools.cached_property
    def graph(self) -> Graph:
        """The network's operations."""
        return network_graph(self.config)

    def image_size(self, wanted: int | tuple[int, ...] | None) -> tuple[int, ...]:
        """Height and width of the images: the given size, or the default.

        Raises:
            UserError: If images of this size are too small for the network, or it has another number of axes.
        """
        wanted, dims = self.input_size if wanted is None else wanted, self.config.dims
        size = (wanted,) * dims if isinstance(wanted, int) else tuple(wanted)
        if len(size) != dims:
            raise UserError(f"input_size={wanted}: must be a number, or {dims} for dims={dims}")
        smallest = self.config.smallest_size
        if min(size) < smallest:
            raise UserError(f"input_size={wanted}: must be at least {smallest} for {self.config.name}")
        return size


def architecture_of(source: Source, **fields: Any) -> Architecture:
    """Resolve a network's architecture without reading weights.

    Args:
        source: A registry name, a model file, a run folder, a configuration, a model or a classifier.
        fields: Configuration fields to replace; for registry names only.

    Raises:
        UserError: If there is no such model, or a field is invalid.
    """
    if isinstance(source, str) and source in REGISTRY:
        return _with_default_size(model_config(source, **fields))
    if fields:
        raise UserError(f"{', '.join(fields)}: can be changed only for a model's name, not for {source}")
    if isinstance(source, ModelConfig):
        return _with_default_size(source)
    if isinstance(source, Backbone):
        return _with_default_size(source.config)
    if isinstance(source, Classifier):
        config = config_from_dict(source.architecture)
        return Architecture(config=config, input_size=source.preprocessing.size, members=source.ensemble)
    check_path("model", source, ", a model's name, a configuration, a model or a Classifier")
    if not Path(source).exists():
        name = os.fspath(source)
        raise UserError(
            f"model={name}: must be a model file, a run folder or a model's name"
            f"{near_matches(name, REGISTRY)} (skipnets models lists all)"
        )
    description = describe(source)
    return Architecture(
        config=config_from_dict(description["architecture"]),
        input_size=tuple(description["preprocessing"]["size"]),
        members=description.get("members", 1),
    )


def _with_default_size(config: ModelConfig) -> Architecture:
    return Architecture(config=config, input_size=(config.default_size,) * config.dims)
