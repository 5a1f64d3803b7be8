"""The families of networks: one record each, with everything that the rest of the package asks about one.

Outside `skipnets.models` nothing asks which family a network is; what differs stands here or is read from the
network's graph. A family of one's own is added by `register_family`. Nothing here needs torch until a module
is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skipnets.errors import UserError
from skipnets.models.graph import BLOCK_EXECUTIONS, BlockExecution, Graph
from skipnets.models.graphs import densenet_graph, resnet_graph
from skipnets.models.registry import (
    DENSENETS,
    RESNETS,
    DenseNetConfig,
    ModelConfig,
    ResNetConfig,
    register_models,
)

if TYPE_CHECKING:
    from torch import nn

    from skipnets.models.backbone import Backbone

__all__ = ["FAMILIES", "Family", "family_of", "network_graph", "register_family", "stage_groups"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of networks.

    Attributes:
        config: The class of its configurations, whose `family` is its name.
        models: Its rows in the registry.
        graph: Builds the graph of a configuration.
        module: Gives the class of its torch modules, which takes a configuration. A function, so that torch
            is imported only when it is called.
        stage: Kind of the graph's scopes with which a group of stages begins: "dense block", "stage". What
            lies before the first is the stem.
        executions: How its blocks can run in training.
        baseline: Gives the network of torchvision with the same state dict, freshly initialized, or None
            where torchvision has none for a configuration.
    """

    config: type[ModelConfig]
    models: tuple[ModelConfig, ...] = ()
    graph: Callable[[Any], Graph]
    module: Callable[[], type[Backbone[Any]]]
    stage: str
    executions: tuple[BlockExecution, ...] = ("plain",)
    baseline: Callable[[Any], nn.Module | None] = lambda _: None


_FAMILIES: dict[str, Family] = {}
FAMILIES: Mapping[str, Family] = _FAMILIES


def register_family(family: Family) -> None:
    """Make a family known: its models can be created by name, summarized, drawn, trained and exported.

    Args:
        family: Its name and the names of its models must be new.

    Raises:
        ValueError: If a name is taken.
    """
    name = family.config.family
    if name in _FAMILIES:
        raise ValueError(f"there is a family {name!r} already")
    register_models(family.config, family.models)
    _FAMILIES[name] = family


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration.

    Raises:
        UserError: If it is not registered.
    """
    if config.family not in _FAMILIES:
        raise UserError(f"family={config.family!r}: this version knows {', '.join(_FAMILIES)}")
    return _FAMILIES[config.family]


def network_graph(config: ModelConfig) -> Graph:
    """The graph of the network that a configuration describes."""
    return family_of(config).graph(config)


def stage_groups(config: ModelConfig) -> list[list[str]]:
    """The paths of a model's stages in groups: the stem, then each block or stage with what follows it."""
    family, graph = family_of(config), network_graph(config)
    starts = {scope.path for scope in graph.scopes if scope.kind == family.stage}
    groups: list[list[str]] = [[]]
    for path in graph.stages:
        if path in starts:
            groups.append([])
        groups[-1].append(path)
    return groups


def _densenet() -> type[Backbone[Any]]:
    from skipnets.models.densenet import DenseNet

    return DenseNet


def _resnet() -> type[Backbone[Any]]:
    from skipnets.models.resnet import ResNet

    return ResNet


def _torchvision_densenet(config: DenseNetConfig) -> nn.Module | None:
    from skipnets.models.baselines import torchvision_densenet

    return torchvision_densenet(config)


def _torchvision_resnet(config: ResNetConfig) -> nn.Module | None:
    from skipnets.models.baselines import torchvision_resnet

    return torchvision_resnet(config)


register_family(
    Family(
        config=DenseNetConfig,
        models=DENSENETS,
        graph=densenet_graph,
        module=_densenet,
        stage="dense block",
        executions=BLOCK_EXECUTIONS,
        baseline=_torchvision_densenet,
    )
)
register_family(
    Family(
        config=ResNetConfig,
        models=RESNETS,
        graph=resnet_graph,
        module=_resnet,
        stage="stage",
        baseline=_torchvision_resnet,
    )
)
