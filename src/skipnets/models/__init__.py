"""DenseNet, ResNet and further families: registry, graphs, modules, and weights from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports
from skipnets.models import family as _family  # noqa: F401 - registers the families of this package

if TYPE_CHECKING:
    from skipnets.models.backbone import Backbone
    from skipnets.models.densenet import DenseNet
    from skipnets.models.factory import build_model, create_model
    from skipnets.models.family import Family, network_graph, register_family
    from skipnets.models.graph import Graph, GraphBuilder
    from skipnets.models.rdnet import RDNet
    from skipnets.models.rdnet_graph import RDNetConfig
    from skipnets.models.registry import (
        DenseNetConfig,
        ModelConfig,
        ResNetConfig,
        config_from_dict,
        config_to_dict,
        list_models,
        model_config,
    )
    from skipnets.models.regnet import RegNet
    from skipnets.models.regnet_graph import RegNetConfig
    from skipnets.models.resnet import ResNet
    from skipnets.models.resnetv2 import ResNetV2
    from skipnets.models.resnetv2_graph import ResNetV2Config

__all__ = [
    "Backbone",
    "DenseNet",
    "DenseNetConfig",
    "Family",
    "Graph",
    "GraphBuilder",
    "ModelConfig",
    "RDNet",
    "RDNetConfig",
    "RegNet",
    "RegNetConfig",
    "ResNet",
    "ResNetConfig",
    "ResNetV2",
    "ResNetV2Config",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "create_model",
    "list_models",
    "model_config",
    "network_graph",
    "register_family",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Backbone": "backbone",
        "DenseNet": "densenet",
        "DenseNetConfig": "registry",
        "Family": "family",
        "Graph": "graph",
        "GraphBuilder": "graph",
        "ModelConfig": "registry",
        "RDNet": "rdnet",
        "RDNetConfig": "rdnet_graph",
        "RegNet": "regnet",
        "RegNetConfig": "regnet_graph",
        "ResNet": "resnet",
        "ResNetConfig": "registry",
        "ResNetV2": "resnetv2",
        "ResNetV2Config": "resnetv2_graph",
        "build_model": "factory",
        "config_from_dict": "registry",
        "config_to_dict": "registry",
        "create_model": "factory",
        "list_models": "registry",
        "model_config": "registry",
        "network_graph": "family",
        "register_family": "family",
    },
    extra="train",
)
