"""Create models from names and configurations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from skipnets.errors import UserError
from skipnets.models.backbone import Backbone
from skipnets.models.family import family_of
from skipnets.models.features import FeatureListNet
from skipnets.models.registry import REGISTRY, ModelConfig, model_config

logger = logging.getLogger("skipnets")


def build_model(config: ModelConfig) -> Backbone[Any]:
    """Build a configuration's model, newly initialized and in train mode."""
    return family_of(config).module()(config)


@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    weights: str | Path | None = None,
    weights_ignore: Sequence[str] = (),
    features_only: Literal[False] = False,
    **fields: Any,
) -> Backbone[Any]: ...
@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    weights: str | Path | None = None,
    weights_ignore: Sequence[str] = (),
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    **fields: Any,
) -> FeatureListNet: ...
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    weights: str | Path | None = None,
    weights_ignore: Sequence[str] = (),
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **fields: Any,
) -> Backbone[Any] | FeatureListNet:
    """Create a model by its registry name, newly initialized or with loaded weights.

    Args:
        model_name: A name from `skipnets.list_models()`, for example `"densenet121"`; with `pretrained` also
            with the tag of weights that timm publishes, for example `"resnet50.a1_in1k"`.
        pretrained: The same as `weights="imagenet"`; with a tag as `weights="hf-hub:timm/resnet50.a1_in1k"`.
        weights: A torchvision tag (`"imagenet"`, `"IMAGENET1K_V2"`; downloaded and checked), a Hugging Face
            name (`"hf-hub:timm/densenet121.ra_in1k"`), weights of torchxrayvision
            (`"xrv:densenet121-res224-all"`), or a local file or folder. None for random ones. Fields that
            the network of torchxrayvision's and Keras's weights needs (`num_classes`, `in_chans`,
            `stride_in`) are taken from them where they are not given.
        weights_ignore: Names in `weights`, or patterns such as `"projection.*"`, of tensors that are not the
            network's. They are always listed.
        features_only: Return a `FeatureListNet`, whose output is a list of feature maps.
        out_indices: With `features_only`, indices of the maps to return, 0 for the finest; an int
            selects that many of the last, None selects all.
        fields: Any field of the model's configuration, for example `num_classes=5, in_chans=1,
            growth_rate=24`; `dims=3` for volumes, `dims=1` for signals (DenseNets and ResNets).

    Returns:
        The model, in train mode. With `weights`, `model.weights_report` says which tensor came from where.

    Raises:
        UserError: For an unknown name, field or source, an impossible value, or weights that do not fit.

    Examples:
        >>> model = create_model("densenet121", num_classes=5, in_chans=1)
        >>> model.num_features
        1024
        >>> backbone = create_model("densenet121", features_only=True, out_indices=(1, 2, 3, 4))
        >>> backbone.feature_info.channels()
        [256, 512, 1024, 1024]
    """
    if pretrained and weights is not None:
        raise UserError(
            f'pretrained=True: means weights="imagenet"; give it or weights={str(weights)!r}, not both'
        )
    if isinstance(weights_ignore, str):
        weights_ignore = (weights_ignore,)
    if weights_ignore and not pretrained and weights is None:
        raise UserError(f"weights_ignore={', '.join(weights_ignore)}: needs weights")
    if out_indices is not None and not features_only:
        raise UserError(f"out_indices={out_indices!r}: needs features_only=True")
    name, _, tag = str(model_name).partition(".")
    if tag and name in REGISTRY:
        published = f"hf-hub:{family_of(REGISTRY[name]).hub}/{model_name}"
        if not pretrained:
            raise UserError(
                f"model={model_name}: names published weights: needs pretrained=True, or {name} with "
                f'weights="{published}"'
            )
        model_name, pretrained, weights = name, False, published
    if not pretrained and weights is None:
        model = build_model(model_config(model_name, **fields))
    else:
        from skipnets.models.weights import load_weights
        from skipnets.models.weights.sources import is_for_images, read_source

        config = model_config(model_name, **fields)  # an unknown name is said before anything is read
        if config.dims != 2 and (weights is None or is_for_images(weights)):
            raise UserError(
                f"weights={weights or 'imagenet'}: are of images; for dims={config.dims} they must be a file"
            )
        checkpoint = read_source("imagenet" if weights is None else weights, model_name=config.name)
        # A field that the network does not have is left to load_weights, which says that they do not match.
        stated = {field: value for field, value in checkpoint.fields.items() if hasattr(config, field)}
        if stated:
            config = model_config(model_name, **{**stated, **fields})
        model = build_model(config)
        model.weights_report = load_weights(model, checkpoint, ignore=weights_ignore)
        activation, usual = (getattr(each, "activation", None) for each in (config, REGISTRY[config.name]))
        if activation != usual:
            logger.warning(
                "warning: activation=%s: weights say nothing of activations; published ones have %s",
                activation,
                usual,
            )
    return FeatureListNet(model, out_indices) if features_only else model
