"""Accuracy against parameters: small DenseNets and ResNets, all trained alike on Fashion-MNIST.

    OMP_NUM_THREADS=1 python benchmarks/accuracy_against_parameters.py --json docs/data/accuracy.json

It shows what growth rate, bottleneck and compression do, on one processor core in less than ten minutes. It
is no contest between the families: nothing was tuned for any model, and the task is small. Images are
reduced to 14×14 pixels; 4,000 train, 1,000 others choose the best epoch, and the 10,000 test images are
read once, after that. Every model is trained once a seed; the seed also draws the training images. The docs
draw the result (docs/guide/growth.md). What the file holds already is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipnets.data import open_dataset
from skipnets.files import atomic_path
from skipnets.models.family import network_graph
from skipnets.models.registry import model_config
from skipnets.training import TrainConfig, train

DATA = "fashion-mnist"
TRAINING, VALIDATION = 4000, 1000
SETTINGS: dict[str, Any] = {
    "recipe": "scratch",
    "epochs": 8,
    "batch_size": 64,
    "augmentation": "flip",
    "ema": 0.0,
    "size": 14,
    "workers": 0,
    "accelerator": "cpu",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: the line of the plot that it belongs to, its name there, and what makes it.

    Attributes:
        kind: The line.
        label: Beside the point.
        model: A registry name.
        fields: Of its configuration, to replace.
    """

    kind: str
    label: str
    model: str
    fields: dict[str, Any]


def dense(growth_rate: int) -> Case:
    """No bottleneck, no compression: six 3×3 layers a block."""
    fields = {"growth_rate": growth_rate, "block_config": [6, 6, 6]}
    return Case("DenseNet", f"k={growth_rate}", "densenet40_k12", fields)


def dense_bc(growth_rate: int) -> Case:
    """As many convolutions a block: three layers of a 1×1 and a 3×3."""
    fields = {"growth_rate": growth_rate, "block_config": [3, 3, 3]}
    return Case("DenseNet-BC", f"k={growth_rate}", "densenet_bc40_k12", fields)


def dense_b(growth_rate: int) -> Case:
    """The same with transitions that keep all channels."""
    fields = {"growth_rate": growth_rate, "block_config": [3, 3, 3], "compression": 1.0}
    return Case("DenseNet-B", f"k={growth_rate}", "densenet_bc40_k12", fields)


def residual(blocks: int, width: int) -> Case:
    """Two 3×3 convolutions a block; with three blocks a stage, as many as the DenseNets have."""
    fields = {"width": width, "block_config": [blocks] * 3}
    return Case("ResNet", f"{width} wide, {blocks} a stage", "resnet20", fields)


CASES = [
    *(dense(growth_rate) for growth_rate in (4, 8)),
    *(dense_bc(growth_rate) for growth_rate in (4, 8, 12, 16)),
    *(dense_b(growth_rate) for growth_rate in (8,)),
    *(residual(blocks, width) for blocks, width in ((1, 8), (1, 16), (3, 8), (3, 16))),
]


def write_subset(path: Path, seed: int) -> None:
    """A splits.csv with some of the training images, as many of each class, and all test images."""
    dataset = open_dataset(DATA, fractions=None)
    splits = dataset.splits.copy()
    generator = np.random.default_rng(seed)
    for label in range(len(dataset.classes)):
        members: NDArray[np.int64] = np.flatnonzero((dataset.labels == label) & (splits == "train"))
        members = generator.permutation(members)
        per_class = [count // len(dataset.classes) for count in (TRAINING, VALIDATION)]
        splits[members[per_class[0] : sum(per_class)]] = "val"
        splits[members[sum(per_class) :]] = ""
    kept = dataset.select(np.flatnonzero(splits != ""))
    dataclasses.replace(kept, splits=splits[splits != ""]).write_splits(path)


def measure(case: Case, seed: int, splits: Path, out: Path) -> dict[str, Any]:
    """Train and test one model."""
    start = time.process_time()
    config = TrainConfig(
        data=DATA,
        out=out,
        model=case.model,
        model_options=case.fields,
        splits=splits,
        seed=seed,
        **SETTINGS,
    )
    run = train(config)
    low, high = run.scores["accuracy_interval"]
    network = model_config(case.model, **case.fields, in_chans=1, num_classes=10)
    return {
        **dataclasses.asdict(case),
        "seed": seed,
        "parameters": network_graph(network).parameter_count(),
        "best_epoch": run.best_epoch,
        "accuracy": run.scores["accuracy"],
        "accuracy_interval": [low, high],
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def environment() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("skipnets", "torch", "numpy", "pillow")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/accuracy_against_parameters.py "
        f"--json docs/data/{options.json.name}",
        "environment": environment(),
        "data": {"name": DATA, "training": TRAINING, "validation": VALIDATION, "test": 10_000},
        "settings": SETTINGS,
        "runs": [],
    }
    if options.json.exists():
        report["runs"] = json.loads(options.json.read_text(encoding="utf-8"))["runs"]
    done = {(run["kind"], run["label"], run["seed"]) for run in report["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            splits = Path(folder, f"splits-{seed}.csv")
            write_subset(splits, seed)
            for number, case in enumerate(CASES):
                if (case.kind, case.label, seed) in done:
                    continue
                report["runs"].append(measure(case, seed, splits, Path(folder, f"run-{seed}-{number}")))
                with atomic_path(options.json) as temporary:
                    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
