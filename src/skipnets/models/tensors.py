"""The tensors that a model consists of, told from its configuration alone. Nothing here needs torch.

With it the sizes of a model can be listed, and a file's tensors checked, where no torch is installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from skipnets.models.registry import DenseNetConfig, Norm, ResNetConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def tensor_shapes(config: DenseNetConfig | ResNetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's state dict, in its order."""
    return dict(_densenet(config) if isinstance(config, DenseNetConfig) else _resnet(config))


def parameter_count(config: DenseNetConfig | ResNetConfig) -> int:
    """How many numbers training learns: running statistics do not count."""
    shapes = tensor_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_BUFFERS))


def _densenet(config: DenseNetConfig) -> Shapes:
    assert config.stem_channels is not None
    norm, k, channels = config.norm, config.growth_rate, config.stem_channels
    stem_kernel = 7 if config.stem == "imagenet" else 3
    yield from _convolution("features.conv0", config.in_chans, channels, stem_kernel, norm)
    if config.stem == "imagenet":
        yield from _norm("features.norm0", channels, norm)
    for block, layers in enumerate(config.block_config, start=1):
        for layer in range(1, layers + 1):
            path = f"features.denseblock{block}.denselayer{layer}"
            yield from _norm(f"{path}.norm1", channels, norm)
            if config.bottleneck is None:
                yield from _convolution(f"{path}.conv1", channels, k, 3, norm)
            else:
                width = config.bottleneck * k
                yield from _convolution(f"{path}.conv1", channels, width, 1, norm)
                yield from _norm(f"{path}.norm2", width, norm)
                yield from _convolution(f"{path}.conv2", width, k, 3, norm)
            channels += k
        if block < len(config.block_config):
            compressed = config.compressed(channels)
            yield from _norm(f"features.transition{block}.norm", channels, norm)
            yield from _convolution(f"features.transition{block}.conv", channels, compressed, 1, norm)
            channels = compressed
    yield from _norm("features.norm5", channels, norm)
    yield from _head("classifier", config.pooled(channels), config.num_classes)


def _resnet(config: ResNetConfig) -> Shapes:
    norm, channels = config.norm, config.width
    yield from _convolution("conv1", config.in_chans, channels, 7 if config.stem == "imagenet" else 3, norm)
    yield from _norm("bn1", channels, norm)
    for stage, blocks in enumerate(config.block_config):
        width, out = config.branch_width(stage), config.out_channels(stage)
        for block in range(blocks):
            path = f"layer{stage + 1}.{block}"
            kernels = (3, 3) if config.block == "basic" else (1, 3, 1)
            widths = (channels, *(width,) * (len(kernels) - 1), out)
            for number, kernel in enumerate(kernels, start=1):
                groups = config.groups if config.block == "bottleneck" and kernel == 3 else 1
                into, onto = widths[number - 1], widths[number]
                yield from _convolution(f"{path}.conv{number}", into // groups, onto, kernel, norm)
                yield from _norm(f"{path}.bn{number}", onto, norm)
            if config.shortcut == "projection" and config.changes_shape(stage, block):
                yield from _convolution(f"{path}.downsample.0", channels, out, 1, norm)
                yield from _norm(f"{path}.downsample.1", out, norm)
            channels = out
    yield from _head("fc", config.pooled(channels), config.num_classes)


def _convolution(path: str, into: int, out: int, kernel: int, norm: Norm) -> Shapes:
    yield f"{path}.weight", (out, into, kernel, kernel)
    if norm is None:
        yield f"{path}.bias", (out,)


def _norm(path: str, channels: int, norm: Norm) -> Shapes:
    if norm is None:
        return
    yield f"{path}.weight", (channels,)
    yield f"{path}.bias", (channels,)
    if norm == "batch":
        yield f"{path}.running_mean", (channels,)
        yield f"{path}.running_var", (channels,)
        yield f"{path}.num_batches_tracked", ()


def _head(path: str, features: int, num_classes: int) -> Shapes:
    if num_classes:
        yield f"{path}.weight", (num_classes, features)
        yield f"{path}.bias", (num_classes,)
