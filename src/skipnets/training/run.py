"""The run folder: its files, and functions to write and read them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipnets import run_folder
from skipnets.errors import UserError, naming
from skipnets.evaluation.display import headline, metric_tables
from skipnets.evaluation.saving import inputs_noun
from skipnets.files import atomic_path, check_can_write, is_temporary
from skipnets.machine import library_versions, processor
from skipnets.tables import Display, properties_table
from skipnets.terminal import csv_text, from_csv_text
from skipnets.training.config import TrainConfig, config_to_yaml, read_config

if TYPE_CHECKING:
    from rich.table import Table

_LIBRARIES = ("skipnets", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one epoch, a row of `metrics.csv`.

    Attributes:
        epoch: Counted from 1.
        lr: Learning rate of the weights after the epoch's last step, with `layer_decay` that of the head's;
            biases have `bias_lr` times as much.
        train_loss: Mean training loss over the epoch, with label smoothing, class weights and mixing.
        val_loss: Mean negative log-likelihood on the validation split; with numbers to predict, the mean of
            the loss that is trained with, or with a program's own loss the mean squared error.
        val_accuracy: Accuracy on the validation split; None with numbers to predict.
        val_balanced_accuracy: Mean recall of the classes on the validation split; None likewise.
        seconds: Duration of the epoch's training.
        validation_seconds: Duration of its validation.
        train_accuracy: Accuracy on the training images as the network saw them, augmented, while its weights
            changed; of mixed images, the class with the larger share counts.
        gradient_norm: Mean over the steps of the gradient's norm, before clipping.
        images_per_second: Training images a second.
        processor_seconds: Processor time of the epoch and its validation, with that of the workers.
        memory: Peak memory in the epoch's training, in MiB: PyTorch's on a GPU, the process's otherwise.
        val_average_precision: With several labels an image, the mean of the labels' average precisions on the
            validation split. The accuracies are then shares of right (image, label) pairs at a probability of
            0.5; the balanced one is the mean over the labels, present and absent. None with one class an
            image.
        val_auroc: Likewise, the mean of the labels' AUROCs.
        val_mae: With numbers to predict, the mean absolute error on the validation split, in the target's
            units; of several targets, the mean over them in their standard deviations. None without.
        val_r2: Likewise, the mean of the targets' coefficients of determination.
        further: Metrics that a program added, as `val_NAME`.

    The fields that may be None are so in runs of version 0.1.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float | None
    val_balanced_accuracy: float | None
    seconds: float
    validation_seconds: float
    train_accuracy: float | None = None
    gradient_norm: float | None = None
    images_per_second: float | None = None
    processor_seconds: float | None = None
    memory: float | None = None
    val_average_precision: float | None = None
    val_auroc: float | None = None
    val_mae: float | None = None
    val_r2: float | None = None
    further: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values: a column each."""
        values = dataclasses.asdict(self)
        return values | values.pop("further")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The row that `to_dict` made the values of."""
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own, further={name: value for name, value in values.items() if name not in names})


@dataclass(frozen=True)
class Run(Display):
    """A run folder; its properties are read from its files.

    Attributes:
        folder: `runs/NAME`.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def __fspath__(self) -> str:
        """The folder, so that whatever takes the path of a run takes a run."""
        return str(self.folder)

    @property
    def config_file(self) -> Path:
        """The resolved configuration, a YAML file."""
        return self.folder / run_folder.CONFIG

    @property
    def environment(self) -> Path:
        """Versions, hardware and seed."""
        return self.folder / run_folder.ENVIRONMENT

    @property
    def splits(self) -> Path:
        """The split of each image, a CSV file."""
        return self.folder / run_folder.SPLITS

    @property
    def model(self) -> Path:
        """The best epoch's classifier."""
        return self.folder / run_folder.MODEL

    @property
    def checkpoint(self) -> Path:
        """Lightning's last checkpoint."""
        return self.folder / run_folder.CHECKPOINTS / run_folder.LAST_CHECKPOINT

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before it, to go on from where the last one is damaged."""
        return self.folder / run_folder.CHECKPOINTS / run_folder.PREVIOUS_CHECKPOINT

    @property
    def metrics(self) -> Path:
        """Metrics with one row per epoch, a CSV file."""
        return self.folder / run_folder.METRICS

    @property
    def curves(self) -> Path:
        """Learning curves, a PNG file."""
        return self.folder / run_folder.CURVES

    @property
    def batches(self) -> Path:
        """The first training batch as the network sees it, a PNG file."""
        return self.folder / run_folder.BATCHES

    @property
    def rates(self) -> Path:
        """The loss at rising learning rates, a PNG file; only of a run that looked for its rate."""
        return self.folder / run_folder.RATES

    @property
    def skipped_file(self) -> Path:
        """The images that could not be decoded in training or validation; absent if there are none."""
        return self.folder / run_folder.SKIPPED

    @property
    def skipped(self) -> dict[str, str]:
        """Name → reason of those images."""
        if not self.skipped_file.exists():
            return {}
        with self.skipped_file.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {
                from_csv_text(line["path"]): from_csv_text(line["reason"]) for line in csv.DictReader(file)
            }

    @property
    def evaluation(self) -> Path:
        """Metrics on the test split; absent before the end, or without test images."""
        return self.folder / run_folder.EVALUATION

    @property
    def predictions(self) -> Path:
        """Predictions on the test split, or out of fold; a Parquet file."""
        return self.folder / run_folder.PREDICTIONS

    @property
    def confusion(self) -> Path:
        """The confusion matrix of those predictions, a PNG file."""
        return self.folder / run_folder.CONFUSION

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return read_config(self.config_file)

    @property
    def rows(self) -> list[Row]:
        """Metrics of all epochs so far."""
        return read_metrics(self.metrics)

    def fold(self, number: int) -> Run:
        """The run of a fold, counted from 1, of a run with folds."""
        return Run(self.folder / run_folder.FOLD.format(number=number))

    @property
    def folds(self) -> list[Run]:
        """The runs of all folds; empty without."""
        return [self.fold(number) for number in range(1, (self.config.folds or 0) + 1)]

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, whose weights `model.safetensors` holds."""
        from skipnets.classifier import describe

        return int(describe(self.model)["provenance"]["scores"]["epoch"])

    @property
    def scores(self) -> dict[str, Any]:
        """Metrics on the test split, as in `evaluation.json`; empty if it was not evaluated."""
        if not self.evaluation.exists():
            return {}
        return run_folder.read_evaluation(self.folder)

    def check_present(self) -> None:
        """Check that the folder was not removed or replaced while the run is trained.

        Raises:
            UserError: If it was; nothing is written in its place.
        """
        if not self.config_file.exists():
            raise UserError(f"out: {self.folder} was removed during the training, and with it the run")

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        rows = {"run": str(self.folder)}
        if self.model.exists():
            count = len(self.folds) if self.config_file.exists() else 0
            rows["model"] = f"{self.model} (" + (
                f"the ensemble of the {count} folds' models)"
                if count
                else f"epoch {self.best_epoch}, the best on validation data)"
            )
        if (self.folder / run_folder.TEST / run_folder.EVALUATION).exists():
            test = run_folder.read_evaluation(self.folder / run_folder.TEST)
            kind = inputs_noun(test)
            rows[f"ensemble on test {kind}"] = f"{headline(test)}, {test['images']:,} {kind}"
        return [*(metric_tables(self.scores) if self.scores else []), properties_table(rows)]


# What a run that was killed as it began may have left.
_BEGINNINGS = {run_folder.LOCK, run_folder.ENVIRONMENT, run_folder.SPLITS}


def claim(folder: Path) -> Run:
    """Claim a new run folder.

    Raises:
        UserError: If it already exists and is not empty, or cannot be written.
    """
    with naming("out"):
        check_can_write(folder, folder=True)
    run = Run(folder)
    if run.config_file.exists():
        raise UserError(
            f"out: {folder} already holds a run; name another folder, or resume it: "
            f"skipnets train --resume {folder}"
        )
    if folder.exists() and not (folder.is_dir() and _is_free(folder)):
        raise UserError(f"out: {folder} is not an empty folder; name a new one")
    return run


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or holds the beginning of a run that was killed too early to be resumed."""
    names = {path.name for path in folder.iterdir() if not is_temporary(path)}
    return not names or (run_folder.LOCK in names and names <= _BEGINNINGS)


def is_helper() -> bool:
    """Whether Lightning or torchrun started this process beside the one that writes the run folder."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) > 0


def begin(run: Run, config: TrainConfig, write_splits: Callable[[Path], None]) -> None:
    """Write the files that a run begins with; run.yaml comes last, because it marks the folder as a run.

    Args:
        run: Whose folder is locked.
        config: Resolved.
        write_splits: Writes splits.csv to a path.

    Raises:
        UserError: If one cannot be written; then nothing is left.
    """
    try:
        write_splits(run.splits)
        write_environment(run, config.seed)
        write_config(run, config)
    except BaseException:
        for path in (run.environment, run.splits):
            path.unlink(missing_ok=True)
        raise


def reopen(folder: Path, *, complete: bool = False) -> Run:
    """Open the run folder of an interrupted training.

    Args:
        folder: The run folder.
        complete: Whether the run may be complete.

    Raises:
        UserError: If there is none, or the run is complete.
    """
    run = Run(folder)
    if (run.folder / run_folder.TUNING).is_file():
        raise UserError(f"resume: {folder} is a tuning: skipnets tune --resume {folder}")
    if not run.config_file.is_file() or not run.splits.is_file():
        raise UserError(
            f"resume: {folder} is not a run folder (no {run_folder.CONFIG} with {run_folder.SPLITS} in it)"
        )
    if run.evaluation.exists() and not complete:
        raise UserError(
            f"resume: the run in {folder} is complete; --epochs with more than its {run.config.epochs} "
            f"extends it, --config {run.config_file} starts another"
        )
    return run


def write_config(run: Run, config: TrainConfig, comments: Sequence[str] = ()) -> None:
    """Write `run.yaml`, which marks the folder as a run.

    Args:
        run: Where.
        config: The settings.
        comments: Lines of comments that go before them.
    """
    with atomic_path(run.config_file) as path:
        path.write_text("".join(f"{line}\n" for line in comments) + config_to_yaml(config), encoding="utf-8")


def write_environment(run: Run, seed: int) -> None:
    """Write `environment.json`: versions, hardware, seed, and what splits.csv must be."""
    import torch

    cuda = torch.cuda.is_available()
    content = {
        "python": platform.python_version(),
        "libraries": library_versions(_LIBRARIES),
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if cuda
        else [],
        "cuda": torch.version.cuda if cuda else None,
        "seed": seed,
        "command": [argument.encode("utf-8", "backslashreplace").decode() for argument in sys.argv],
        "files": {run_folder.SPLITS: run_folder.fingerprint(run.splits)} if run.splits.exists() else {},
    }
    with atomic_path(run.environment) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write `metrics.csv` atomically."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(Row) if field.name != "further"]
        writer = csv.DictWriter(file, [*names, *{name: None for row in rows for name in row.further}])
        writer.writeheader()
        writer.writerows(row.to_dict() for row in rows)


def read_metrics(path: Path) -> list[Row]:
    """Read the rows that `write_metrics` wrote; none if there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row.from_dict(
                {
                    "epoch": int(line.pop("epoch")),
                    **dict.fromkeys(("val_accuracy", "val_balanced_accuracy")),
                    **{name: float(value) for name, value in line.items() if value},
                }
            )
            for line in csv.DictReader(file)
        ]


def write_skipped(run: Run, skipped: Mapping[str, str]) -> None:
    """Write `skipped.csv`: the images that could not be decoded, with reasons."""
    if not skipped:
        return
    with (
        atomic_path(run.skipped_file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(map(csv_text, row) for row in sorted(skipped.items()))
