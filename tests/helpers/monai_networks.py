"""Networks with the names and the arithmetic of MONAI's, for signals, images and volumes.

After MONAI 1.6, `monai.networks.nets.DenseNet` and `ResNet`; a test compares them where that is installed.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEANS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class MonaiDenseLayer(nn.Module):
    def __init__(self, dims: int, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        width = bottleneck * growth
        self.layers = named(
            norm1=NORMS[dims](channels),
            relu1=nn.ReLU(),
            conv1=CONVOLUTIONS[dims](channels, width, 1, bias=False),
            norm2=NORMS[dims](width),
            relu2=nn.ReLU(),
            conv2=CONVOLUTIONS[dims](width, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class MonaiDenseNet(nn.Module):
    def __init__(
        self,
        dims: int,
        channels: int,
        classes: int,
        *,
        init: int,
        growth: int,
        blocks: tuple[int, ...],
        bottleneck: int = 4,
    ) -> None:
        super().__init__()
        conv, norm = CONVOLUTIONS[dims], NORMS[dims]
        self.features = named(
            conv0=conv(channels, init, 7, stride=2, padding=3, bias=False),
            norm0=norm(init),
            relu0=nn.ReLU(),
            pool0=MAXIMA[dims](3, 2, 1),
        )
        width = init
        for number, layers in enumerate(blocks, 1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", MonaiDenseLayer(dims, width, growth, bottleneck))
                width += growth
            self.features.add_module(f"denseblock{number}", block)
            if number == len(blocks):
                self.features.add_module("norm5", norm(width))
                break
            half = width // 2
            transition = named(
                norm=norm(width),
                relu=nn.ReLU(),
                conv=conv(width, half, 1, bias=False),
                pool=MEANS[dims](2, 2),
            )
            self.features.add_module(f"transition{number}", transition)
            width = half
        self.class_layers = named(relu=nn.ReLU(), out=nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        relu, out = self.class_layers
        logits: Tensor = out(relu(self.features(x)).flatten(2).mean(2))
        return logits


class MonaiBlock(nn.Module):
    def __init__(self, dims: int, channels: int, planes: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        conv, norm = CONVOLUTIONS[dims], NORMS[dims]
        out = 4 * planes if bottleneck else planes
        windows = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [channels, *[planes] * (len(windows) - 1), out]
        self.count = len(windows)
        for number, ((size, step), into, to) in enumerate(zip(windows, widths, widths[1:], strict=False), 1):
            self.add_module(f"conv{number}", conv(into, to, size, step, size // 2, bias=False))
            self.add_module(f"bn{number}", norm(to))
        self.downsample = (
            nn.Sequential(conv(channels, out, 1, stride, bias=True), norm(out))
            if stride != 1 or channels != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = y.relu() if number < self.count else y
        result: Tensor = (y + (x if self.downsample is None else self.downsample(x))).relu()
        return result


class MonaiResNet(nn.Module):
    def __init__(
        self,
        dims: int,
        channels: int,
        classes: int,
        *,
        width: int,
        blocks: tuple[int, ...],
        bottleneck: bool,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[dims](channels, width, 7, stride, 3, bias=False)
        self.bn1 = NORMS[dims](width)
        self.maxpool = MAXIMA[dims](3, 2, 1)
        current = width
        for stage, count in enumerate(blocks):
            planes, layer = width * 2**stage, nn.Sequential()
            for block in range(count):
                step = 2 if stage and not block else 1
                layer.append(MonaiBlock(dims, current, planes, step, bottleneck=bottleneck))
                current = 4 * planes if bottleneck else planes
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(current, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for name, layer in self.named_children():
            x = layer(x) if name.startswith("layer") else x
        logits: Tensor = self.fc(x.flatten(2).mean(2))
        return logits
