"""DenseNets and ResNets, their registry, and weights from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets.models.densenet import DenseNet
    from skipnets.models.factory import build_model, create_model
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
    "ResNet",
    "ResNetConfig",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "create_model",
    "list_models",
    "model_config",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DenseNet": "densenet",
        "DenseNetConfig": "registry",
        "ResNet": "resnet",
        "ResNetConfig": "registry",
        "build_model": "factory",
        "config_from_dict": "registry",
        "config_to_dict": "registry",
        "create_model": "factory",
        "list_models": "registry",
        "model_config": "registry",
    },
    extra="train",
)
