"""What a command can be pointed at: a registry name, a model file, a run folder, a model."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipnets.classifier import Classifier, describe
from skipnets.errors import UserError, near_matches
from skipnets.models.backbone import Backbone
from skipnets.models.family import network_graph
from skipnets.models.graph import Graph
from skipnets.models.registry import REGISTRY, ModelConfig, config_from_dict, model_config

Source = str | os.PathLike[str] | ModelConfig | Backbone[Any] | Classifier


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a network is, without its weights.

    Attributes:
        config: Its configuration.
        input_size: Height and width of the images it is meant for.
    """

    config: ModelConfig
    input_size: tuple[int, int]

    @functools.cached_property
    def graph(self) -> Graph:
        """Its operations."""
        return network_graph(self.config)

    def image_size(self, wanted: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the images: those that were asked for, or the usual ones.

        Raises:
            UserError: If images of this size are too small for the network.
        """
        height, width = (wanted, wanted) if isinstance(wanted, int) else wanted or self.input_size
        if min(height, width) < 1:
            raise UserError(f"input_size={height}×{width}: must be at least 1")
        smallest = self.config.smallest_size
        if min(height, width) < smallest:
            raise UserError(
                f"input_size={height}×{width}: too small for {self.config.name}, "
                f"the smallest that works is {smallest}×{smallest}"
            )
        return height, width


def architecture_of(source: Source, **fields: Any) -> Architecture:
    """Find out what network is meant; no weights are read.

    Args:
        source: A registry name, a model file, a run folder, a configuration, a model or a classifier.
        fields: Of the configuration, to replace; for registry names alone.

    Raises:
        UserError: If there is no such thing, or a field does not fit.
    """
    if isinstance(source, str) and source in REGISTRY:
        return _with_usual_size(model_config(source, **fields))
    if fields:
        raise UserError(f"{', '.join(fields)}: can be changed for a model's name only, not for {source}")
    if isinstance(source, ModelConfig):
        return _with_usual_size(source)
    if isinstance(source, Backbone):
        return _with_usual_size(source.config)
    if isinstance(source, Classifier):
        config = config_from_dict(source.architecture)
        return Architecture(config=config, input_size=source.preprocessing.size)
    if not Path(source).exists():
        name = os.fspath(source)
        raise UserError(
            f'"{name}" is no model file or run folder and no model\'s name{near_matches(name, REGISTRY)} '
            "(skipnets models lists all)"
        )
    about = describe(source)
    height, width = about["preprocessing"]["size"]
    return Architecture(config=config_from_dict(about["architecture"]), input_size=(height, width))


def _with_usual_size(config: ModelConfig) -> Architecture:
    return Architecture(config=config, input_size=(config.usual_size, config.usual_size))
