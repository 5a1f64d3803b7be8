"""DenseNet, ResNet and further families: registry, graphs, modules, and weights from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports
from skipnets.models import family as _family  # noqa: F401 - registers the families of this package

if TYPE_CHECKING:
    from skipnets.models.densenet import DenseNet
    from skipnets.models.factory import build_model, create_model
    from skipnets.models.family import Family, network_graph, register_family
    from skipnets.models.registry import (
        DenseNetConfig,
        ResNetConfig,
        config_from_dict,
        config_to_dict,
        list_models,
        model_config,
    )
    from skipnets.models.resnet import ResNet

__all__ = [
    "DenseNet",
    "DenseNetConfig",
    "Family",
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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DenseNet": "densenet",
        "DenseNetConfig": "registry",
        "Family": "family",
        "ResNet": "resnet",
        "ResNetConfig": "registry",
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
