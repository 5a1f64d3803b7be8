"""Graphs of DenseNets and ResNets from their configurations. Nothing here needs torch.

Shapes: C channels, k growth rate.
"""

from __future__ import annotations

from typing import Any

from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import STEM_REDUCTION, DenseNetConfig, ResNetConfig

__all__ = ["densenet_graph", "resnet_graph"]


def densenet_graph(config: DenseNetConfig) -> Graph:
    """Stem, dense blocks with transitions between them, a last norm and ReLU, and the head."""
    assert config.stem_channels is not None
    build = GraphBuilder(name=config.name, in_chans=config.in_chans, dims=config.dims)
    norm, bias = config.norm, config.norm is None
    rates = iter(config.drop_path_rates())
    if config.has_simple_stem:
        with build.scope("stem", "stem"):
            x = build.convolution("features.conv0", 0, config.stem_channels, 7, stride=2, bias=bias)
            build.stage("features.conv0", x)
            x = build.stage("features.norm0", build.norm("features.norm0", x, norm))
            x = build.stage("features.relu0", _activated(build, config, "features.relu0", x))
            x = build.stage("features.pool0", _dense_stem_pool(build, config, x))
    elif config.stem == "deep":
        x = 0
        for number, width in enumerate((config.growth_rate, config.growth_rate, config.stem_channels)):
            name, stride = f"features.conv{number}", 2 if number == 0 else 1
            x = build.stage(name, build.convolution(name, x, width, 3, stride=stride, bias=bias))
            name = f"features.norm{number}"
            x = build.stage(name, build.norm(name, x, norm))
            name = f"features.relu{number}"
            x = build.stage(name, _activated(build, config, name, x))
        x = build.stage("features.pool0", _dense_stem_pool(build, config, x))
    else:
        x = build.stage(
            "features.conv0",
            build.convolution(
                "features.conv0",
                0,
                config.stem_channels,
                3,
                stride=STEM_REDUCTION[config.stem],
                bias=bias,
            ),
        )
    for number, layers in enumerate(config.block_config, start=1):
        block = f"features.denseblock{number}"
        with build.scope(block, "dense block"):
            for layer in range(1, layers + 1):
                new = _dense_layer(build, config, f"{block}.denselayer{layer}", x, next(rates))
                x = build.concatenate(block, x, new)
        build.stage(block, x)
        if number < len(config.block_config):
            path = f"features.transition{number}"
            with build.scope(path, "transition"):
                x = _activated(build, config, f"{path}.relu", build.norm(f"{path}.norm", x, norm))
                x = build.convolution(f"{path}.conv", x, config.compressed(build.channels(x)), 1, bias=bias)
                x = build.pool(f"{path}.pool", x, "average", 2, stride=2)
            build.stage(path, x)
    x = build.stage("features.norm5", build.norm("features.norm5", x, norm))
    x = build.stage("features.relu5", _activated(build, config, "features.relu5", x))
    return build.finish(
        x,
        head="classifier",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
    )


def _dense_stem_pool(build: GraphBuilder, config: DenseNetConfig, x: int) -> int:
    """Max-pooling to half the size, perhaps with a blur."""
    if config.anti_aliasing is None:
        return build.pool("features.pool0", x, "max", 3, stride=2, padding=1)
    with build.scope("features.pool0", "pooling"):
        return build.blur(
            "features.pool0.1", build.pool("features.pool0.0", x, "max", 3, stride=1, padding=1)
        )


def _dense_layer(
    build: GraphBuilder, config: DenseNetConfig, path: str, x: int, drop_path_rate: float
) -> int:
    """A norm, ReLU and convolution once (3×3) or twice (1×1 to the bottleneck, then 3×3): k new maps."""
    bias = config.norm is None
    with build.scope(path, "dense layer"):
        x = _activated(build, config, f"{path}.relu1", build.norm(f"{path}.norm1", x, config.norm))
        if config.bottleneck is None:
            x = build.convolution(f"{path}.conv1", x, config.growth_rate, 3, bias=bias)
        else:
            width = config.bottleneck * config.growth_rate
            x = build.convolution(f"{path}.conv1", x, width, 1, bias=bias)
            x = _activated(build, config, f"{path}.relu2", build.norm(f"{path}.norm2", x, config.norm))
            x = build.convolution(f"{path}.conv2", x, config.growth_rate, 3, bias=bias)
        x = build.dropout(f"{path}.dropout", x, config.proj_drop_rate)
        return build.dropout(f"{path}.drop_path", x, drop_path_rate, "row")


def resnet_graph(config: ResNetConfig) -> Graph:
    """Stem, stages of residual blocks, and the head."""
    build = GraphBuilder(name=config.name, in_chans=config.in_chans, dims=config.dims)
    rates = iter(config.drop_path_rates())
    if config.has_simple_stem:
        with build.scope("stem", "stem"):
            x = _stem(build, config)
    else:
        x = _stem(build, config)
    for stage, blocks in enumerate(config.block_config):
        path = f"layer{stage + 1}"
        with build.scope(path, "stage"):
            for block in range(blocks):
                x = _residual_block(build, config, stage, block, x, next(rates))
        build.stage(path, x)
    return build.finish(
        x,
        head="fc",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
    )


def _stem(build: GraphBuilder, config: ResNetConfig) -> int:
    """All before the first residual block."""
    bias = config.norm is None
    *inner, channels = config.stem_widths()
    if inner:
        with build.scope("conv1", "convolutions"):
            x = 0
            for number, width in enumerate(inner):
                place, stride = 3 * number, 2 if number == 0 else 1
                x = build.convolution(f"conv1.{place}", x, width, 3, stride=stride, bias=bias)
                x = build.norm(f"conv1.{place + 1}", x, config.norm)
                x = _activated(build, config, f"conv1.{place + 2}", x)
            x = build.convolution(f"conv1.{3 * len(inner)}", x, channels, 3, bias=bias)
    else:
        windows = {"imagenet": (7, 2), "stride1": (7, 1)}
        kernel, stride = windows.get(config.stem, (3, STEM_REDUCTION[config.stem]))
        x = build.convolution("conv1", 0, channels, kernel, stride=stride, bias=bias)
    build.stage("conv1", x)
    x = build.stage("bn1", build.norm("bn1", x, config.norm))
    x = build.stage("relu", _activated(build, config, "relu", x))
    if config.has_stem_pool:
        x = build.stage("maxpool", _stem_pool(build, config, x))
    return x


def _stem_pool(build: GraphBuilder, config: ResNetConfig, x: int) -> int:
    """Max-pooling, or what stands in its place, to half the size."""
    channels, smooth = build.channels(x), config.anti_aliasing
    if config.stem_pool == "convolution":
        with build.scope("maxpool", "pooling"):
            stride = 1 if smooth else 2
            x = build.convolution("maxpool.0", x, channels, 3, stride=stride, bias=config.norm is None)
            x = _halved(build, config, "maxpool.1", x) if smooth else x
            last = 2 if smooth else 1
            return _activated(
                build, config, f"maxpool.{last + 1}", build.norm(f"maxpool.{last}", x, config.norm)
            )
    if smooth == "average":
        return build.pool("maxpool", x, "average", 2, stride=2)
    if smooth == "blur":
        with build.scope("maxpool", "pooling"):
            x = build.pool("maxpool.0", x, "max", 3, stride=1, padding=1)
            return build.blur("maxpool.1", x)
    return build.pool("maxpool", x, "max", 3, stride=2, padding=1)


def _halved(build: GraphBuilder, config: ResNetConfig, name: str, x: int) -> int:
    """The map at half its size, by the configuration's anti-aliasing."""
    return build.blur(name, x) if config.anti_aliasing == "blur" else build.cell_mean(name, x)


def _attention(build: GraphBuilder, config: ResNetConfig, path: str, x: int) -> int:
    """The map with its channels weighted."""
    if config.attention is None:
        return x
    channels = build.channels(x)
    with build.scope(path, "squeeze-excitation" if config.attention == "se" else "channel attention"):
        width, y = config.attention_width(channels), build.squeeze(path, x)
        if config.attention == "se":
            y = build.relu(f"{path}.act", build.convolution(f"{path}.fc1", y, width, 1, bias=True))
            y = build.convolution(f"{path}.fc2", y, channels, 1, bias=True)
        else:
            y = build.channel_convolution(f"{path}.conv", y, width)
        return build.multiply(path, x, build.activation(f"{path}.gate", y, "sigmoid"))


def _residual_block(
    build: GraphBuilder, config: ResNetConfig, stage: int, block: int, x: int, drop_path_rate: float
) -> int:
    """A branch of two 3×3 convolutions, or of 1×1, 3×3 and 1×1, added to its shortcut."""
    path, bias = f"layer{stage + 1}.{block}", config.norm is None
    width, out = config.branch_width(stage), config.out_channels(stage)
    stride = config.stride(stage) if block == 0 else 1
    dilation = config.dilation(stage)
    first_dilation = config.dilation(stage - 1) if block == 0 and stage > 0 else dilation
    basic = config.block == "basic"
    smooth = config.anti_aliasing is not None and stride == 2
    stride_inside = 1 if smooth else stride

    def convolved(number: int, y: int, channels: int, kernel: int, **window: Any) -> int:
        """A convolution and its norm; that of the last one has no activation behind it."""
        y = build.convolution(f"{path}.conv{number}", y, channels, kernel, bias=bias, **window)
        return build.norm(f"{path}.bn{number}", y, config.norm, activated=number < (2 if basic else 3))

    with build.scope(path, "residual block"):
        if basic:
            y = _activated(
                build,
                config,
                f"{path}.relu1",
                convolved(1, x, width, 3, stride=stride_inside, dilation=first_dilation),
            )
            y = _halved(build, config, f"{path}.aa", y) if smooth else y
            y = build.dropout(f"{path}.dropout", y, config.proj_drop_rate)
            y = convolved(2, y, out, 3, dilation=dilation)
        else:
            first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride_inside)
            y = _activated(build, config, f"{path}.relu1", convolved(1, x, width, 1, stride=first))
            y = convolved(2, y, width, 3, stride=second, dilation=first_dilation, groups=config.groups)
            y = _activated(build, config, f"{path}.relu2", y)
            y = _halved(build, config, f"{path}.aa", y) if smooth else y
            y = build.dropout(f"{path}.dropout", y, config.proj_drop_rate)
            y = convolved(3, y, out, 1)
        y = _attention(build, config, f"{path}.se", y)
        y = build.dropout(f"{path}.drop_path", y, drop_path_rate, "row")
        shortcut = (
            _shortcut(build, config, f"{path}.downsample", x, out, stride)
            if config.changes_shape(stage, block)
            else x
        )
        return build.activation(
            f"{path}.relu{2 if basic else 3}", build.add(path, shortcut, y), config.activation
        )


def _shortcut(build: GraphBuilder, config: ResNetConfig, path: str, x: int, out: int, stride: int) -> int:
    """A 1×1 convolution with norm (option B), perhaps of means; or every S-th pixel and zeros (option A)."""
    with build.scope(path, "shortcut"):
        if config.shortcut == "pad":
            added = out - build.channels(x)
            x = build.pool(path, x, "average", 1, stride=stride)
            return build.pad(path, x, added // 2, added - added // 2)
        if config.shortcut == "average":
            x = build.cell_mean(f"{path}.0", x) if stride == 2 else x
            x = build.convolution(f"{path}.1", x, out, 1, bias=config.norm is None)
            return build.norm(f"{path}.2", x, config.norm, activated=False)
        x = build.convolution(f"{path}.0", x, out, 1, stride=stride, bias=config.norm is None)
        return build.norm(f"{path}.1", x, config.norm, activated=False)


def _activated(build: GraphBuilder, config: DenseNetConfig | ResNetConfig, name: str, x: int) -> int:
    """The configuration's activation behind a norm, which may be one itself."""
    return x if config.norm_activates else build.activation(name, x, config.activation)
