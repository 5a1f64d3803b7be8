"""Memory for the backward pass against depth: torchvision and linear execution of DenseNet-BC, k = 12.

    python benchmarks/activation_memory.py --json docs/data/activation-memory.json \
        --figure docs/assets/activation-memory.svg

Counted is what autograd saves in a forward pass on images of 32×32: each storage once, parameters and
input left out. No clock is involved, so the figures repeat exactly. The slope is that of the least-squares
line through the logarithms of depth and bytes: 1 is growth in proportion to the depth, 2 with its square.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from skipnets.models import DenseNet
from skipnets.models.graph import BlockExecution
from skipnets.models.registry import DenseNetConfig
from skipnets.training.benchmark import saved_bytes
from training import torchvision_densenet

DEPTHS = (40, 70, 100, 130, 160, 190, 220, 250)
IMAGES = 2


def config_of_depth(depth: int) -> DenseNetConfig:
    return DenseNetConfig(
        name=f"densenet_bc{depth}_k12",
        growth_rate=12,
        block_config=((depth - 4) // 6,) * 3,
        stem="cifar",
        num_classes=10,
    )


def own(execution: BlockExecution) -> Callable[[DenseNetConfig], nn.Module]:
    def make(config: DenseNetConfig) -> nn.Module:
        model = DenseNet(config)
        model.set_block_execution(execution)
        return model

    return make


VARIANTS: dict[str, Callable[[DenseNetConfig], nn.Module]] = {
    "torchvision": torchvision_densenet,
    "torchvision, memory_efficient": lambda config: torchvision_densenet(config, memory_efficient=True),
    "linear": own("linear"),
    "linear-recompute": own("linear-recompute"),
}


def measure() -> dict[str, list[float]]:
    """MiB an image at each depth, for each variant."""
    images = torch.randn(IMAGES, 3, 32, 32).to(memory_format=torch.channels_last)
    sizes: dict[str, list[float]] = {}
    for name, make in VARIANTS.items():
        for depth in DEPTHS:
            model = make(config_of_depth(depth)).to(memory_format=torch.channels_last).train()
            sizes.setdefault(name, []).append(saved_bytes(model, images) / IMAGES / 2**20)
    return sizes


def slope(sizes: list[float]) -> float:
    return float(np.polyfit(np.log(DEPTHS), np.log(sizes), 1)[0])


def draw(sizes: dict[str, list[float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, values), marker in zip(sizes.items(), "os^D", strict=True):
        axes.loglog(DEPTHS, values, marker=marker, label=f"{name} (slope {slope(values):.2f})")
    axes.set_xticks(DEPTHS, labels=[str(depth) for depth in DEPTHS])
    axes.minorticks_off()
    axes.set_xlabel("depth L")
    axes.set_ylabel("saved for the backward pass, MiB an image")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sizes = measure()
    print(f"{'depth':32}" + "".join(f"{depth:8}" for depth in DEPTHS) + "   slope")
    for name, values in sizes.items():
        print(f"{name:32}" + "".join(f"{value:8.2f}" for value in values) + f"{slope(values):8.2f}")
    if arguments.json:
        data = {"unit": "MiB an image", "depths": DEPTHS, "saved": sizes}
        data["slopes"] = {name: slope(values) for name, values in sizes.items()}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    if arguments.figure:
        draw(sizes, arguments.figure)


if __name__ == "__main__":
    main()
