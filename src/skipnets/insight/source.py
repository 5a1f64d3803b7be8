"""Resolve an architecture from a registry name, a model file, a run folder or a model."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from skipnets.classifier import Classifier, describe, load
from skipnets.errors import UserError, check_path, near_matches
from skipnets.models.backbone import Backbone
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel
from skipnets.models.family import network_graph
from skipnets.models.graph import Graph
from skipnets.models.modified import modification
from skipnets.models.registry import REGISTRY, ModelConfig, config_from_dict, model_config
from skipnets.models.spatial import Convolution

Source = str | os.PathLike[str] | ModelConfig | nn.Module | Classifier


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network's configuration and default input size, without weights.

    Attributes:
        config: Its configuration.
        input_size: Default height and width of the images; length of signals; depth, height and width of
            volumes. None of a module, of which nothing tells it.
        members: Number of networks of this architecture in an ensemble.
        network: A network that has no graph, to be run instead; None of the others.
    """

    config: ModelConfig
    input_size: tuple[int, ...] | None
    members: int = 1
    network: nn.Module | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def graph(self) -> Graph:
        """The network's operations."""
        return network_graph(self.config)

    def image_size(self, wanted: int | tuple[int, ...] | None) -> tuple[int, ...]:
        """Height and width of the images: the given size, or the default.

        Raises:
            UserError: If images of this size are too small for the network, it has another number of axes, or
                none is given and nothing tells it.
        """
        wanted = self.input_size if wanted is None else wanted
        if wanted is None:
            raise UserError(f"input_size: must be given for {self.config.name}, a module")
        dims = self.config.dims
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
        source: A registry name, a model file, a run folder, a configuration, a module or a classifier. Of a
            network that is no part of this package, or was modified, the weights are read, too, and the
            import that a file names must be trusted (`skipnets.trust.trusting`).
        fields: Configuration fields to replace, of registry names; of a module `in_chans`, by default what
            its first convolution reads.

    Raises:
        UserError: If there is no such model, or a field is invalid.
    """
    if isinstance(source, str) and source in REGISTRY:
        return _with_default_size(model_config(source, **fields))
    own = isinstance(source, nn.Module) and not isinstance(source, Backbone)
    if fields and not (own and set(fields) == {"in_chans"}):
        raise UserError(f"{', '.join(fields)}: can be changed only for a model's name, not for {source}")
    if isinstance(source, ModelConfig):
        return _with_default_size(source)
    if isinstance(source, Backbone):
        return _of_backbone(source)
    if isinstance(source, nn.Module):
        return _of_module(source, **fields)
    if isinstance(source, Classifier):
        return _of_classifier(source)
    check_path("model", source, ", a model's name, a configuration, a module or a Classifier")
    if not Path(source).exists():
        name = os.fspath(source)
        raise UserError(
            f"model={name}: must be a model file, a run folder or a model's name"
            f"{near_matches(name, REGISTRY)} (skipnets models lists all)"
        )
    description = describe(source)
    _check_alike(source, description.get("architectures", ()))
    config = config_from_dict(description["architecture"])
    if isinstance(config, CustomConfig):
        return _of_classifier(load(source, device="cpu"))
    return Architecture(
        config=config,
        input_size=tuple(description["preprocessing"]["size"]),
        members=description.get("members", 1),
    )


def _check_alike(model: object, architectures: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an ensemble of different networks, of which none stands for all."""
    if any(each != architectures[0] for each in architectures):
        names = ", ".join(dict.fromkeys(str(each["name"]) for each in architectures))
        raise UserError(
            f"{model} is an ensemble of different networks ({names}): name the run of one of them, or in "
            "Python take one of classifier.members"
        )


def _of_classifier(classifier: Classifier) -> Architecture:
    size, members = classifier.preprocessing.size, classifier.ensemble
    _check_alike(classifier.path or "this classifier", classifier.architectures)
    # A model that is in memory may have been changed.
    if classifier.export is None and (first := classifier.members[0]).runtime.name == "torch":
        found = _of_backbone(first.model)
        return Architecture(config=found.config, input_size=size, members=members, network=found.network)
    config = config_from_dict(classifier.architecture)
    if isinstance(config, CustomConfig):
        raise UserError(
            f"{classifier.path}: is an export of {config.name}, whose layers only the module tells; take the "
            "model file that it was made from"
        )
    return Architecture(config=config, input_size=size, members=members)


def _of_backbone(model: Backbone[Any]) -> Architecture:
    """A model of this package by its configuration, unless it is no longer what that describes."""
    config = model.config
    if isinstance(model, CustomModel):
        return Architecture(config=config, input_size=None, network=model.network)
    if modification(model) is None:
        return _with_default_size(config)
    return Architecture(
        config=CustomConfig(
            name=f"{config.name}, modified",
            num_classes=config.num_classes,
            in_chans=config.in_chans,
            dims=config.dims,
        ),
        input_size=(config.default_size,) * config.dims,
        network=model,
    )


def _of_module(network: nn.Module, in_chans: int | None = None) -> Architecture:
    """A module that is no part of this package, by its first convolution."""
    first = next((each for each in network.modules() if isinstance(each, Convolution)), None)
    name = type(network).__name__
    if in_chans is None and first is None:
        raise UserError(f"in_chans: must be given for {name}, which has no convolution to tell it")
    dims = 2 if first is None else len(first.kernel_size)
    channels = in_chans or (0 if first is None else first.in_channels)
    config = CustomConfig(name=name, num_classes=0, in_chans=channels, dims=dims)
    return Architecture(config=config, input_size=None, network=network)


def _with_default_size(config: ModelConfig) -> Architecture:
    return Architecture(config=config, input_size=(config.default_size,) * config.dims)
