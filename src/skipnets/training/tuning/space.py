"""Which options tuning varies, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skipnets.data.volume_augmentation import AUGMENTATIONS_OF
from skipnets.errors import UserError, needs_extra
from skipnets.models.weights import is_cached
from skipnets.training.auto import PRETRAINED, candidates
from skipnets.training.choice import typical_side
from skipnets.training.config import ResolvedConfig, TrainConfig

with needs_extra("tune"):
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
    )

__all__ = ["TUNED", "search_space"]

TUNED = ("lr", "weight_decay", "batch_size", "augmentation", "model")
"""The options that are varied unless they are given."""

_BATCH_SIZES = (16, 32, 64, 128, 256)
_AUGMENTATIONS = ("none", "flip", "crop", "crop-flip", "resized-crop", "trivial")
# The rates reach so far below and above that of the recipe.
_RATES = 30.0
# A batch takes at most this share of the training images: fewer steps an epoch say little.
_BATCH_SHARE = 1 / 8


def search_space(
    config: TrainConfig, default: ResolvedConfig, *, train_images: int
) -> dict[str, BaseDistribution]:
    """Option → the values that a trial may take.

    Args:
        config: As the user gave it: what it sets is not varied.
        default: What a training without tuning would use, which lies within the space.
        train_images: Number of training images.

    Raises:
        UserError: If everything is given.
    """
    networks: Sequence[str] = ()
    if config.model is None and not config.model_options:
        networks = _with(default.model, _networks(default))
    batch_sizes = [size for size in _BATCH_SIZES if size <= max(train_images * _BATCH_SHARE, 16)]
    every: Mapping[str, BaseDistribution] = {
        "lr": FloatDistribution(default.lr / _RATES, default.lr * _RATES, log=True),
        "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
        "batch_size": CategoricalDistribution(_with(default.batch_size, batch_sizes)),
        "augmentation": CategoricalDistribution(
            _with(default.augmentation, AUGMENTATIONS_OF.get(default.dims or 2, _AUGMENTATIONS))
        ),
        **({"model": CategoricalDistribution(networks)} if len(networks) > 1 else {}),
    }
    space = {name: choices for name, choices in every.items() if getattr(config, name) is None}
    if not space:
        raise UserError(f"there is nothing to tune: leave out some of {', '.join(TUNED)}")
    return space


def _networks(default: ResolvedConfig) -> Sequence[str]:
    """Networks that can begin as the default does: all trials have its initial weights."""
    if default.weights is None:
        return [option.model for option in candidates(typical_side(default.size), fixed=True)]
    if default.weights == "imagenet":
        return [name for name in PRETRAINED if is_cached(name)]  # a trial does not wait for a download
    return ()


def _with(value: Any, choices: Sequence[Any]) -> tuple[Any, ...]:
    """The choices, among which the value is."""
    return tuple(choices) if value in choices else (*choices, value)
