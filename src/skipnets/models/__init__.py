"""DenseNet, ResNet and further families: registry, graphs, modules, and weights from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skipnets.models.family import Family, network_graph, register_family
from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import (
    DenseNetConfig,
    ModelConfig,
    ResNetConfig,
    config_from_dict,
    config_to_dict,
    list_models,
    model_config,
)

if TYPE_CHECKING:
    from skipnets.models.backbone import Backbone
    from skipnets.models.densenet import DenseNet
    from skipnets.models.factory import build_model, create_model
    from skipnets.models.resnet import ResNet

__all__ = [
    "Backbone",
    "DenseNet",
    "DenseNetConfig",
    "Family",
    "Graph",
    "GraphBuilder",
    "ModelConfig",
    "ResNet",
    "ResNetConfig",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "create_model",
    "list_models",
    "model_config",
    "network_graph",
    "register_family",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from skipnets.models import backbone, densenet, factory, resnet

    packages = {"Backbone": backbone, "DenseNet": densenet, "ResNet": resnet}
    return getattr(packages.get(name, factory), name)
