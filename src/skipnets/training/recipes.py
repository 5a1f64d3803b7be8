"""Recipes: default training settings, as data."""

from __future__ import annotations

import dataclasses
from typing import Any

from skipnets.errors import UserError
from skipnets.training.config import TrainConfig

_PAPER: dict[str, Any] = {
    "accumulate": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": True,
    "layer_decay": 1.0,
    "bias_lr": 1.0,
    "whiten_stem": False,
    "fit_head": False,
    "schedule": "milestones",
    "warmup": 0.0,
    "clip": 0.0,
    "label_smoothing": 0.0,
    "imbalance": "none",
    "ema": 0.0,
    "freeze": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "patience": 0,
    "channels_last": True,
    "block_execution": "auto",
}
_MODERN: dict[str, Any] = _PAPER | {
    "decay_norm_and_bias": False,
    "schedule": "cosine",
    "milestones": (),
    "label_smoothing": 0.1,
    "clip": 5.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    # Where to start from; the rules of `skipnets.training.auto` replace what the images, the device and the
    # time make better.
    "auto": _MODERN
    | {
        "epochs": 30,
        "batch_size": 32,
        "lr": 0.07,
        "weight_decay": 5e-4,
        "warmup": 2.0,
        "augmentation": "crop-flip",
        "ema": 0.0,
    },
    # For tens of thousands of images of 32 to 64 pixels in minutes. After Jordan 2024, 94% on CIFAR-10 in
    # 3.29 seconds on one GPU (arXiv 2404.00498): a whitening start, much label smoothing, a rate that falls
    # in a line; batches are smaller than there, for a CPU or one GPU.
    "speedrun": _MODERN
    | {
        "model": "resnet8_w64",
        "bias_lr": 16.0,
        "whiten_stem": True,
        "epochs": 15,
        "batch_size": 128,
        "lr": 0.2,
        "weight_decay": 5e-4,
        "schedule": "linear",
        "warmup": 3.0,
        "label_smoothing": 0.2,
        "augmentation": "shift-flip",
    },
    # Huang et al. 2017, section 4.2 (the CIFAR runs; "+" is the augmentation of He et al. 2016).
    "paper-cifar": _PAPER
    | {"epochs": 300, "batch_size": 64, "milestones": (0.5, 0.75), "augmentation": "crop-flip"},
    # Huang et al. 2017, section 4.2 (the ImageNet runs, ÷10 at epochs 30 and 60), tested on a center crop.
    "paper-imagenet": _PAPER
    | {
        "epochs": 90,
        "batch_size": 256,
        "milestones": (1 / 3, 2 / 3),
        "augmentation": "resized-crop",
        "size": 224,
        "fit": "crop",
        "crop_fraction": 0.875,
    },
    # From random weights, for data of unknown size.
    "scratch": _MODERN
    | {
        "epochs": 100,
        "batch_size": 64,
        "weight_decay": 5e-4,
        "warmup": 5.0,
        "augmentation": "trivial",
        "ema": 0.999,
    },
    # From pretrained weights: a tenth of the rate, mild augmentation.
    "finetune": _MODERN
    | {"epochs": 20, "batch_size": 32, "lr": 0.01, "warmup": 1.0, "augmentation": "resized-crop"},
}


def with_recipe(config: TrainConfig, **chosen: Any) -> TrainConfig:
    """Fill in the fields that are not set, from the configuration's recipe.

    The recipe's warm-up takes at most a quarter of the epochs.

    Args:
        config: Its recipe is auto unless it names one.
        chosen: Values that go before the recipe's.
    """
    name = config.recipe or "auto"
    if name == "finetune" and config.weights is None:
        raise UserError("weights: must be given for recipe=finetune, such as weights=imagenet or a file")
    values = RECIPES[name] | chosen
    filled = {field: value for field, value in values.items() if getattr(config, field) is None}
    if "warmup" in filled:
        filled["warmup"] = min(filled["warmup"], (config.epochs or filled["epochs"]) / 4)
    config = dataclasses.replace(config, recipe=name, **filled)
    if config.schedule == "milestones" and not config.milestones:
        raise UserError("milestones: must be given for schedule=milestones, such as 0.5 0.75")
    return config
