"""Published accuracies on ImageNet, with their sources."""

from __future__ import annotations

from typing import NamedTuple

import torchvision

from skipnets.models.weights.timm_accuracy import TIMM_ACCURACY

__all__ = ["PublishedAccuracy", "published_accuracy"]


class PublishedAccuracy(NamedTuple):
    """Top-1 accuracy on ImageNet's validation images.

    Attributes:
        top1: In percent.
        weights: What `create_model(weights=…)` takes.
        source: Who published it.
    """

    top1: float
    weights: str
    source: str


_RDNET = {"rdnet_tiny": 82.8, "rdnet_small": 83.7, "rdnet_base": 84.4, "rdnet_large": 84.8}


def published_accuracy(name: str) -> PublishedAccuracy | None:
    """The best published accuracy of a model's weights: torchvision's, timm's or the authors'; or None.

    It is that at the model's default image size, of weights that were trained on ImageNet-1k alone.
    """
    if name in _RDNET:
        source = "github.com/naver-ai/rdnet"
        return PublishedAccuracy(_RDNET[name], f"hf-hub:naver-ai/{name}.nv_in1k", source)
    known = [each for each in (_torchvision(name), _timm(name)) if each is not None]
    return max(known, key=lambda each: each.top1, default=None)


def _torchvision(name: str) -> PublishedAccuracy | None:
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    weights = max(
        torchvision.models.get_model_weights(name),
        key=lambda each: float(each.meta["_metrics"]["ImageNet-1K"]["acc@1"]),
    )
    top1 = float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])
    return PublishedAccuracy(top1, weights.name, f"torchvision {torchvision.__version__.partition('+')[0]}")


def _timm(name: str) -> PublishedAccuracy | None:
    if name not in TIMM_ACCURACY:
        return None
    top1, tag = TIMM_ACCURACY[name]
    return PublishedAccuracy(top1, f"hf-hub:timm/{name}.{tag}", "timm's results-imagenet.csv")
