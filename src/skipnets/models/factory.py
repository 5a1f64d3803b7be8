"""From a name to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skipnets.models.backbone import Backbone
from skipnets.models.family import family_of
from skipnets.models.registry import ModelConfig, model_config


def build_model(config: ModelConfig) -> Backbone[Any]:
    """The freshly initialized model that a configuration describes, in train mode."""
    return family_of(config).module()(config)


def create_model(name: str, *, weights: str | Path | None = None, **fields: Any) -> Backbone[Any]:
    """A model by its registry name, freshly initialized or with weights from elsewhere.

    Args:
        name: A name that `skipnets.list_models()` knows, for example `"densenet121"`.
        weights: A torchvision tag (`"imagenet"`, `"IMAGENET1K_V2"`; downloaded and checked), a Hugging Face
            name (`"hf-hub:timm/densenet121.ra_in1k"`), or a local file or folder. None draws them anew.
        fields: Any field of the model's configuration, for example `num_classes=5, in_chans=1,
            growth_rate=24`.

    Returns:
        The model, in train mode. With `weights`, `model.weights_report` tells what was matched with what.

    Raises:
        UserError: For an unknown name, field or source, an impossible value, or weights that do not fit.

    Examples:
        >>> model = create_model("densenet121", num_classes=5, in_chans=1)
        >>> model.num_features
        1024
    """
    model = build_model(model_config(name, **fields))
    if weights is not None:
        from skipnets.models.weights import load_weights

        model.weights_report = load_weights(model, weights)
    return model
