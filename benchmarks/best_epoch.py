"""Which epoch of a training to keep, where validation images are few: test accuracy by three rules.

    python benchmarks/datasets.py --out datasets
    cd datasets
    python ../benchmarks/best_epoch.py digits fashion textures signs emoji sign-digits --out ../epochs.jsonl

The default recipe trains on some images of each class, and all of them (0), for a short time of one thread.
After each epoch the weights that would be saved are tested. Rules: the epoch with the best validation
accuracy (of equal ones that with the lowest loss); the latest one within a standard error of it, which is
what `skipnets train` keeps; the last one. Each line of the output is a training; it is not repeated if it is
there. Time is the processor's, without what testing takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from scipy import stats

from skipnets.data.loading import validation_loader
from skipnets.data.sources import open_dataset
from skipnets.machine import processor
from skipnets.training import TrainConfig, budget, train
from skipnets.training.best_epoch import Resolution
from skipnets.training.callbacks import Record
from skipnets.training.data import ImageDataModule
from skipnets.training.task import ClassificationTask


class Tested(pl.Callback):
    """Tests the weights that would be saved, after each epoch.

    Args:
        data: A folder with test/.
    """

    def __init__(self, data: Path) -> None:
        images = open_dataset(str(data))
        self.images = images.select((images.splits == "test").nonzero()[0])
        self.accuracies: list[float] = []
        self.validated = 0
        self.seconds = 0.0

    def clock(self) -> float:
        """Processor time without that of tests."""
        return time.process_time() - self.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test."""
        began = time.process_time()
        assert isinstance(pl_module, ClassificationTask)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        record = next(each for each in trainer.callbacks if isinstance(each, Record))  # type: ignore[attr-defined]
        model = pl_module.model if record.average is None else record.average.model
        self.validated = len(data.val)
        training = model.training
        model.eval()
        right = 0
        with torch.inference_mode():
            for images, labels, _ in validation_loader(self.images, data.preprocessing, batch_size=100):
                right += int((model(pl_module.normalize(images)).argmax(1) == labels).sum())
        model.train(training)
        self.accuracies.append(right / len(self.images))
        self.seconds += time.process_time() - began


def measure(data: Path, each: int, seed: int, seconds: float) -> dict[str, Any]:
    """Train once, on `each` images of each class or, with 0, on all."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for split in ("train", "test"):
            for label in sorted((data / split).iterdir()):
                (root / split / label.name).mkdir(parents=True)
                files = sorted(label.iterdir())
                for file in files[: each or None] if split == "train" else files:
                    (root / split / label.name / file.name).symlink_to(file.resolve())
        tested = Tested(root)
        budget.clock = tested.clock
        config = TrainConfig(
            data=str(root),
            out=Path(folder) / "run",
            time=f"{seconds}s",
            seed=seed,
            workers=0,
            accelerator="cpu",
        )
        run = train(config, callbacks=tested)
        return {
            "data": data.name,
            "each": each,
            "seed": seed,
            "time": seconds,
            "validated": tested.validated,
            "val": [row.val_accuracy for row in run.rows],
            "loss": [row.val_loss for row in run.rows],
            "test": tested.accuracies,
            "kept": run.best_epoch,
            "processor": processor(),
            "torch": torch.__version__,
        }


def best(line: dict[str, Any]) -> int:
    """The epoch of the highest accuracy, then of the lowest loss, then the earliest."""
    order = range(len(line["val"]))
    return max(order, key=lambda epoch: (line["val"][epoch], -line["loss"][epoch]))


def latest_near_best(line: dict[str, Any]) -> int:
    """The latest epoch that is at most a standard error, or an image, below the best accuracy."""
    highest = max(line["val"])
    least = highest - Resolution(line["validated"], 1 / line["validated"]).tolerance(highest)
    return max(epoch for epoch, value in enumerate(line["val"]) if value >= least)


def last(line: dict[str, Any]) -> int:
    """The last epoch."""
    return len(line["val"]) - 1


RULES: Sequence[Callable[[dict[str, Any]], int]] = (best, latest_near_best, last)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Test accuracy of each rule by images a class, and how it differs from the best epoch's."""
    rows = ["| images a class | trainings | best | latest near the best | last |", "|---|---|---|---|---|"]
    for each in sorted({line["each"] for line in lines}, key=lambda count: count or 1 << 30):
        found = [line for line in lines if line["each"] == each]
        accuracy = {rule: [100 * line["test"][rule(line)] for line in found] for rule in RULES}
        cells = [f"{statistics.mean(accuracy[best]):.1f}"]
        for rule in RULES[1:]:
            changes = [a - b for a, b in zip(accuracy[rule], accuracy[best], strict=True)]
            mean = statistics.mean(changes)
            width = (
                stats.t.ppf(0.975, len(changes) - 1) * stats.sem(changes)
                if len(changes) > 1
                else float("nan")
            )
            cells.append(f"{statistics.mean(accuracy[rule]):.1f} ({mean:+.2f} ± {width:.2f})")
        rows.append(f"| {each or 'all'} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not in the output file yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, help="folders with train/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines; it is extended")
    parser.add_argument("--each", type=int, nargs="+", default=[8, 40, 0], help="images a class; 0: all")
    parser.add_argument("--times", type=float, nargs="+", default=[12, 25, 45], help="seconds for each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = (
        [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    )
    known = {(line["data"], line["each"], line["seed"], line["time"]) for line in lines}
    for seed in options.seeds:
        for each, seconds in zip(options.each, options.times, strict=True):
            for data in options.data:
                if (data.name, each, seed, seconds) not in known:
                    lines.append(measure(data, each, seed, seconds))
                    with options.out.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
