r"""What the rules of the recipe `auto` rest on: trainings of equal processor time that differ in one option.

    python benchmarks/datasets.py --out datasets
    python benchmarks/recipes.py datasets/{digits,fashion,signs,textures,emoji,clothing,cifar10-10k} \
        --out recipes.jsonl
    python benchmarks/recipes.py datasets/emoji --time 40 --out recipes.jsonl --options "" "{lr: 0.1}"
    skipnets train datasets/cifar10 --time 10m --out runs/cifar10
    python benchmarks/recipes.py datasets/{sign-digits,clothing} --time 20 --out fine-tuning.jsonl --options \
        "" "{weights: runs/cifar10}" "{weights: runs/cifar10, fit_head: true}" \
        "{weights: runs/cifar10, layer_decay: 0.7}"

Each training has the time in seconds of processor time (user and system, one thread, from the start of
training on, without the imports), by which also its schedule goes: other programs on the machine change
nothing. `--options` are YAML mappings of `TrainConfig`'s fields; the empty one is what `auto` chooses. Each
line of the output holds the dataset, the options, the seed, the test accuracy and what was chosen. At the end
a table of means over datasets and seeds is printed, as differences to the first of the options.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
import yaml

from skipnets.training import TrainConfig, budget, train

# What the rules decide, each against its neighbors: one option differs from what `auto` chooses, and the rate
# follows the batch. Of an option that the rules give by the images, every value is there.
OPTIONS = (
    "",
    "{lr: 0.035}",
    "{lr: 0.14}",
    "{batch_size: 16}",
    "{batch_size: 32}",
    "{batch_size: 64}",
    "{batch_size: 128}",
    "{whiten_stem: false}",
    "{whiten_stem: true}",
    "{augmentation: none}",
    "{augmentation: crop}",
    "{augmentation: crop-flip}",
    "{augmentation: shift-flip}",
    "{augmentation: trivial}",
    "{label_smoothing: 0.0}",
    "{label_smoothing: 0.2}",
    "{weight_decay: 0.002}",
    "{mixup: 0.2}",
    "{cutmix: 1.0}",
    "{ema: 0.99}",
    "{schedule: linear}",
)


def measure(data: Path, options: str, seed: int, seconds: float) -> dict[str, object]:
    """Train once; the run's folder is thrown away."""
    fields = yaml.safe_load(options or "{}")
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            data=str(data),
            out=Path(folder) / "run",
            time=f"{seconds}s",
            seed=seed,
            workers=0,
            accelerator="cpu",
            **fields,
        )
        run = train(config)
        chosen = run.config
        return {
            "data": data.name,
            "options": options,
            "seed": seed,
            "time": seconds,
            "accuracy": run.scores["accuracy"],
            "took": round(time.process_time() - began, 1),
            "model": chosen.model,
            "epochs": chosen.epochs,
            "epoch_plan": [list(pair) for pair in chosen.epoch_plan],
        }


def table(lines: list[dict[str, object]], options: list[str]) -> str:
    """Mean accuracy of each of the options by dataset, and the mean difference to the first."""
    scores: dict[tuple[object, object], list[float]] = defaultdict(list)
    for line in lines:
        scores[line["data"], line["options"]].append(float(str(line["accuracy"])))
    names = sorted({str(line["data"]) for line in lines})
    rows = [f"{'options':40} " + " ".join(f"{name[:12]:>12}" for name in [*names, "difference"])]
    for option in options:
        cells, differences = [], []
        for name in names:
            found, base = scores.get((name, option)), scores.get((name, options[0]))
            cells.append(f"{100 * statistics.mean(found):12.1f}" if found else " " * 12)
            if found and base:
                differences.append(100 * (statistics.mean(found) - statistics.mean(base)))
        change = f"{statistics.mean(differences):+12.1f}" if differences else ""
        rows.append(f"{option or 'auto':40} " + " ".join([*cells, change]))
    return "\n".join(rows)


def main() -> None:
    """Measure what is not in the output file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders with train/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines; it is extended")
    parser.add_argument("--time", type=float, default=120.0, help="processor seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--options", nargs="+", default=list(OPTIONS), help="YAML mappings; the first is the base"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    budget.clock = time.process_time
    lines = (
        [json.loads(line) for line in arguments.out.read_text().splitlines()]
        if arguments.out.exists()
        else []
    )
    known = {(line["data"], line["options"], line["seed"], line["time"]) for line in lines}
    for seed in arguments.seeds:
        for data in arguments.data:
            for options in arguments.options:
                if (data.name, options, seed, arguments.time) in known:
                    continue
                lines.append(measure(data, options, seed, arguments.time))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table([line for line in lines if line["time"] == arguments.time], arguments.options))


if __name__ == "__main__":
    main()
