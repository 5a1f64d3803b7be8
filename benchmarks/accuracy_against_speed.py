"""Published accuracy against the speed measured here: which networks are worth their time.

    OMP_NUM_THREADS=1 python benchmarks/accuracy_against_speed.py --json docs/data/speed.json

Accuracies are top-1 on ImageNet at the default image size, of weights that torchvision, timm or the authors
publish and that were trained on ImageNet-1k alone; `skipnets models "*" --compare` prints the same with the
weights' names. Speeds are of new networks in PyTorch, float32, `channels_last`, one thread, a forward pass in
eval mode. The networks take turns, and the fastest of the rounds counts, in processor time, so that other
load on the machine disturbs little. The docs draw the result (docs/guide/transfer.md).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from skipnets.files import atomic_path
from skipnets.machine import processor
from skipnets.models import create_model, model_config, network_graph
from skipnets.models.accounting import macs
from skipnets.models.weights.accuracy import published_accuracy

FAMILIES: dict[str, tuple[str, ...]] = {
    "DenseNet": ("densenet121", "densenet169", "densenet201", "densenet161"),
    "ResNet": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "ResNet-D": ("resnet14t", "resnet18d", "resnet26d", "resnet34d", "resnet50d"),
    "ResNet with attention": ("seresnet50", "ecaresnet50t", "ecaresnetlight", "resnetrs50"),
    "pre-activation ResNet": ("resnetv2_18", "resnetv2_34", "resnetv2_34d", "resnetv2_50", "resnetv2_101"),
    "RegNetX": ("regnetx_002", "regnetx_004", "regnetx_008", "regnetx_016", "regnetx_032", "regnetx_080"),
    "RegNetY": ("regnety_002", "regnety_004", "regnety_016", "regnety_032", "regnety_040", "regnety_080"),
    "RDNet": ("rdnet_tiny", "rdnet_small"),
}


def measure(batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each network."""
    rows: list[dict[str, Any]] = []
    for family, names in FAMILIES.items():
        for name in names:
            published = published_accuracy(name)
            assert published is not None, name
            graph, size = network_graph(model_config(name)), model_config(name).default_size
            rows.append(
                {
                    "name": name,
                    "family": family,
                    "top1": published.top1,
                    "weights": published.weights,
                    "source": published.source,
                    "size": size,
                    "parameters": graph.parameter_count(),
                    "macs": sum(macs(graph, (size, size))),
                    "seconds": float("inf"),
                }
            )
    for _ in range(rounds):
        for row in rows:
            row["seconds"] = min(row["seconds"], seconds(row["name"], row["size"], batch_size))
    for row in rows:
        row["images_per_second"] = round(batch_size / row.pop("seconds"), 2)
    return rows


@torch.inference_mode()
def seconds(name: str, size: int, batch_size: int) -> float:
    """Processor time of a forward pass, after one that is not timed."""
    model = create_model(name).eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    model(images)
    start = time.process_time()
    model(images)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/accuracy_against_speed.py --json {arguments.json}",
        "machine": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "networks": measure(arguments.batch_size, arguments.rounds),
    }
    with atomic_path(arguments.json) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
