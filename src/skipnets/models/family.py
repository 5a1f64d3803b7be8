"""Families of networks: one record each, with everything that the rest of the package needs to know about it.

Code outside `skipnets.models` does not depend on the family; differences are recorded here or read from the
network's graph. `register_family` adds another one. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig, custom_graph
from skipnets.models.graph import BLOCK_EXECUTIONS, BlockExecution, Graph
from skipnets.models.graphs import densenet_graph, resnet_graph
from skipnets.models.rdnet_graph import RDNETS, RDNetConfig, rdnet_graph
from skipnets.models.registry import (
    DENSENET_VARIANTS,
    DENSENETS,
    RESNETS,
    DenseNetConfig,
    ModelConfig,
    ResNetConfig,
    register_models,
)
from skipnets.models.regnet_graph import REGNETS, RegNetConfig, regnet_graph
from skipnets.models.resnet_variants import RESNET_VARIANTS
from skipnets.models.resnetv2_graph import RESNETV2S, ResNetV2Config, resnetv2_graph

if TYPE_CHECKING:
    from torch import nn

    from skipnets.models.backbone import Backbone

__all__ = ["FAMILIES", "Family", "family_of", "network_graph", "register_family", "stage_groups"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of networks.

    Attributes:
        config: The class of its configurations; its `family` is the family's name.
        models: Its rows in the registry.
        graph: Builds the graph of a configuration.
        module: Returns the class of its torch modules, which takes a configuration. A function, so that torch
            is imported only when it is called.
        stage: Kind of graph scope that begins a group of stages: "dense block", "stage". Stages before
            the first are the stem.
        executions: Supported ways to run its blocks in training.
        hub: Who publishes its weights under timm's tags on the Hugging Face Hub.
        baseline: Builds torchvision's network with the same state dict, newly initialized; None if
            torchvision has none for a configuration.
    """

    config: type[ModelConfig]
    models: tuple[ModelConfig, ...] = ()
    graph: Callable[[Any], Graph]
    module: Callable[[], type[Backbone[Any]]]
    stage: str
    executions: tuple[BlockExecution, ...] = ("plain",)
    hub: str = "timm"
    baseline: Callable[[Any], nn.Module | None] = lambda _: None


_FAMILIES: dict[str, Family] = {}
FAMILIES: Mapping[str, Family] = _FAMILIES


def register_family(family: Family) -> None:
    """Register a family: its models can be created by name, summarized, drawn, trained and exported.

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
        raise UserError(f"family={config.family!r}: must be one of {', '.join(_FAMILIES)}")
    return _FAMILIES[config.family]


def network_graph(config: ModelConfig) -> Graph:
    """The graph of the network that a configuration describes."""
    return family_of(config).graph(config)


def stage_groups(config: ModelConfig) -> list[list[str]]:
    """Paths of a model's stages in groups: the stem, then each block or stage with the layers after it."""
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


def _custom() -> type[Backbone[Any]]:
    from skipnets.models.custom_model import CustomModel

    return CustomModel


def _rdnet() -> type[Backbone[Any]]:
    from skipnets.models.rdnet import RDNet

    return RDNet


def _regnet() -> type[Backbone[Any]]:
    from skipnets.models.regnet import RegNet

    return RegNet


def _resnetv2() -> type[Backbone[Any]]:
    from skipnets.models.resnetv2 import ResNetV2

    return ResNetV2


def _torchvision_densenet(config: DenseNetConfig) -> nn.Module | None:
    from skipnets.models.baselines import torchvision_densenet

    return torchvision_densenet(config)


def _torchvision_resnet(config: ResNetConfig) -> nn.Module | None:
    from skipnets.models.baselines import torchvision_resnet

    return torchvision_resnet(config)


register_family(
    Family(
        config=DenseNetConfig,
        models=(*DENSENETS, *DENSENET_VARIANTS),
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
        models=(*RESNETS, *RESNET_VARIANTS),
        graph=resnet_graph,
        module=_resnet,
        stage="stage",
        executions=("plain", "linear"),
        baseline=_torchvision_resnet,
    )
)
register_family(Family(config=CustomConfig, graph=custom_graph, module=_custom, stage=""))
register_family(
    Family(
        config=RDNetConfig,
        models=RDNETS,
        graph=rdnet_graph,
        module=_rdnet,
        stage="dense block",
        executions=BLOCK_EXECUTIONS,
        hub="naver-ai",
    )
)
register_family(
    Family(
        config=RegNetConfig,
        models=REGNETS,
        graph=regnet_graph,
        module=_regnet,
        stage="stage",
    )
)
register_family(
    Family(
        config=ResNetV2Config,
        models=RESNETV2S,
        graph=resnetv2_graph,
        module=_resnetv2,
        stage="stage",
    )
)
