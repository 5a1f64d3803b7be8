"""Small networks as architecture and tensors, made without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


class _Maker:
    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.tensors: Tensors = {}

    def convolution(self, name: str, outputs: int, inputs: int, kernel: int) -> None:
        weight = self._random.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
        self.tensors[f"{name}.weight"] = weight.astype(np.float32)

    def norm(self, name: str, channels: int) -> None:
        draw = self._random.uniform
        self.tensors[f"{name}.weight"] = draw(0.5, 1.5, channels).astype(np.float32)
        self.tensors[f"{name}.bias"] = draw(-0.3, 0.3, channels).astype(np.float32)
        self.tensors[f"{name}.running_mean"] = draw(-0.2, 0.2, channels).astype(np.float32)
        self.tensors[f"{name}.running_var"] = draw(0.5, 1.5, channels).astype(np.float32)
        self.tensors[f"{name}.num_batches_tracked"] = np.array(3)

    def head(self, name: str, classes: int, features: int) -> None:
        self.tensors[f"{name}.weight"] = self._random.standard_normal((classes, features)).astype(np.float32)
        self.tensors[f"{name}.bias"] = self._random.standard_normal(classes).astype(np.float32)


def densenet(seed: int = 0) -> tuple[dict[str, Any], Tensors]:
    """Two blocks of two layers, k = 5, bottleneck 20, CIFAR stem: nothing is a multiple of a vector."""
    make = _Maker(seed)
    make.convolution("features.conv0", 10, 3, 3)
    channels = 10
    for block in (1, 2):
        for layer in (1, 2):
            name = f"features.denseblock{block}.denselayer{layer}"
            make.norm(f"{name}.norm1", channels)
            make.convolution(f"{name}.conv1", 20, channels, 1)
            make.norm(f"{name}.norm2", 20)
            make.convolution(f"{name}.conv2", 5, 20, 3)
            channels += 5
        if block == 1:
            make.norm("features.transition1.norm", channels)
            make.convolution("features.transition1.conv", channels // 2, channels, 1)
            channels //= 2
    make.norm("features.norm5", channels)
    make.head("classifier", 4, channels)
    architecture = {
        "family": "densenet",
        "name": "densenet_bc40_k12",
        "block_config": [2, 2],
        "stem": "cifar",
        "in_chans": 3,
        "num_classes": 4,
        "norm": "batch",
        "growth_rate": 5,
        "bottleneck": 4,
        "compression": 0.5,
        "stem_channels": 10,
    }
    return architecture, make.tensors


def resnet(seed: int = 0) -> tuple[dict[str, Any], Tensors]:
    """Two stages of one bottleneck block, width 8, ImageNet stem, projections."""
    make = _Maker(seed)
    make.convolution("conv1", 8, 3, 7)
    make.norm("bn1", 8)
    channels = 8
    for stage, (inner, outer) in enumerate([(8, 32), (16, 64)], start=1):
        name = f"layer{stage}.0"
        make.convolution(f"{name}.conv1", inner, channels, 1)
        make.norm(f"{name}.bn1", inner)
        make.convolution(f"{name}.conv2", inner, inner, 3)
        make.norm(f"{name}.bn2", inner)
        make.convolution(f"{name}.conv3", outer, inner, 1)
        make.norm(f"{name}.bn3", outer)
        make.convolution(f"{name}.downsample.0", outer, channels, 1)
        make.norm(f"{name}.downsample.1", outer)
        channels = outer
    make.head("fc", 4, channels)
    architecture = {
        "family": "resnet",
        "name": "resnet50",
        "block_config": [1, 1],
        "stem": "imagenet",
        "in_chans": 3,
        "num_classes": 4,
        "norm": "batch",
        "block": "bottleneck",
        "width": 8,
        "groups": 1,
        "width_per_group": 64,
        "shortcut": "projection",
        "output_stride": None,
    }
    return architecture, make.tensors
