"""Evaluate a classifier on a dataset.

Shapes: N images, K classes of the classifier.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.axes import INPUTS
from skipnets.classifier import Classifier, as_classifier, check_single_label
from skipnets.data.contents import Content, contents
from skipnets.data.dataset import ImageDataset, log_listing
from skipnets.data.loading import evaluation_batches
from skipnets.data.named import NAMED_SETS
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset, open_dataset
from skipnets.data.splits import SPLITS, SplitRow, read_split_rows
from skipnets.errors import UserError, check_at_least_1, listed, needs_extra
from skipnets.evaluation.confusion import draw_confusion, save_figure
from skipnets.evaluation.display import metric_tables
from skipnets.evaluation.saving import SavedEvaluation, or_none
from skipnets.probabilities import NOT_FINITE, softmax
from skipnets.scaling import unscaled
from skipnets.selection import check_calibrated, needs_features

with needs_extra("train"):
    from skipnets.evaluation.metrics import Metrics, measure
    from skipnets.evaluation.multi_label import measure_labels
    from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation, labels_by_name
    from skipnets.evaluation.regression import measure_numbers
    from skipnets.evaluation.regression_evaluation import RegressionEvaluation, numbers_by_name
    from skipnets.evaluation.reliability import CALIBRATION_BINS
    from skipnets.evaluation.selective import Selective, select

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Evaluation", "evaluate", "open_own_images", "open_with_runs_splits", "same_data"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(SavedEvaluation):
    """A classifier's predictions on a set of images, and their metrics.

    Attributes:
        classes: The classifier's K classes.
        metrics: The metrics.
        labels: (N,) true classes, indices into `classes`.
        logits: (N, K), not divided by the temperature.
        temperature: The classifier's temperature, at which the metrics are computed.
        groups: (N,) what images belong to, such as a patient; "" for one alone. None where nothing says so.
        selective: Prediction sets and rejected images; None if none was asked for.
    """

    classes: tuple[str, ...]
    metrics: Metrics
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    temperature: float
    groups: NDArray[np.str_] | None = None
    selective: Selective | None = None

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(N, K) probabilities of the classes, at the temperature."""
        return softmax(self.logits, self.temperature).astype(np.float32)

    @property
    def warnings(self) -> list[str]:
        """Caveats, one sentence each."""
        caveats = super().warnings
        absent = [name for name, count in zip(self.classes, self.metrics.support, strict=True) if not count]
        if absent:
            caveats.append(f"no {INPUTS[self.dims]} of {listed(absent)}: their metrics are undefined")
        if self.metrics.groups == 1:
            caveats.append(
                f"all {INPUTS[self.dims]} are of one group: how much metrics vary among groups is not known"
            )
        return caveats

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values for JSON; undefined ones are None."""
        metrics = self.metrics
        return {
            **self._about(),
            "groups": metrics.groups,
            "accuracy": metrics.accuracy,
            "accuracy_interval": list(metrics.accuracy_interval),
            "balanced_accuracy": metrics.balanced_accuracy,
            "top5": metrics.top5,
            "nll": metrics.nll,
            "ece": metrics.ece,
            "ece_bins": CALIBRATION_BINS,
            "temperature": self.temperature,
            "macro_f1": metrics.macro_f1,
            "macro_auroc": or_none(metrics.macro_auroc),
            "classes": [
                {
                    "name": name,
                    "precision": or_none(metrics.precision[index]),
                    "recall": or_none(metrics.recall[index]),
                    "f1": or_none(metrics.f1[index]),
                    "auroc": or_none(metrics.auroc[index]),
                    "support": int(metrics.support[index]),
                }
                for index, name in enumerate(self.classes)
            ],
            "confusion": metrics.confusion.tolist(),
            **({} if self.selective is None else self._selective_metrics(self.selective)),
            **self._doubts(),
        }

    def _selective_metrics(self, selective: Selective) -> dict[str, Any]:
        return selective.measure(self.logits.argmax(1) == self.labels, self.labels, self.groups)

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        return metric_tables(self.to_dict())

    def save(self, folder: str | os.PathLike[str], *, table: Literal["parquet", "csv"] = "parquet") -> None:
        """Write evaluation.json, confusion.png, and predictions.parquet or predictions.csv.

        Args:
            folder: Created if it does not exist; files of these names are replaced.
            table: The format of the predictions.

        Raises:
            UserError: If they cannot be written.
        """
        self.draw_confusion(Path(folder) / run_folder.CONFUSION)
        super().save(folder, table=table)

    def prediction_columns(self) -> dict[str, Any]:
        """Name → N values: path, label, group, prediction, its probability, and "p:NAME" for each class."""
        predicted = self.probabilities.argmax(1)
        columns: dict[str, Any] = {
            "path": self.names,
            "label": [self.classes[index] for index in self.labels],
            **({} if self.groups is None else {"group": self.groups.tolist()}),
            "prediction": [self.classes[index] for index in predicted],
            "probability": self.probabilities.max(1),
            **({} if self.selective is None else self.selective.columns(self.classes)),
        }
        for index, name in enumerate(self.classes):
            columns[f"p:{name}"] = np.ascontiguousarray(self.probabilities[:, index])
        return columns

    def draw_confusion(self, path: str | os.PathLike[str]) -> None:
        """Draw the confusion matrix; see `skipnets.evaluation.draw_confusion`."""
        low, high = self.metrics.accuracy_interval
        note = (
            f"accuracy {self.metrics.accuracy:.1%} (95% interval {100 * low:.1f}–{high:.1%}), "
            f"{len(self.names):,} {INPUTS[self.dims]}"
        )
        save_figure(draw_confusion(self.metrics.confusion, self.classes, title=self._title, note=note), path)


def evaluate(
    model: str | os.PathLike[str] | Classifier,
    data: ImageDataset | str | os.PathLike[str] | None = None,
    *,
    split: str = "test",
    coverage: float | None = None,
    reject: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    download: bool = False,
    options: DataOptions | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation | MultiLabelEvaluation | RegressionEvaluation:
    """Evaluate a classifier on labeled images.

    Data whose options do not give the task are read as the classifier's.
    Classes are matched by name, so the data may have fewer than the classifier, in any order. Images that
    cannot be read are listed and left out of the metrics.

    Args:
        model: A model file, a run folder, an export, or a classifier.
        data: A folder, a manifest, a named dataset, or an open dataset; None uses the data of the
            classifier's own run. If these are the run's data (the same folder or manifest, or nine tenths of
            its images by content), the run's splits are used, and a warning counts images that it did not
            use, which are left out; other data without splits are all "test".
        split: "train", "val", "test" or "all".
        coverage: Measure prediction sets or intervals with this coverage, as of `Classifier.predict`.
        reject: Measure what rejecting this share of unusual images leaves, as of `Classifier.predict`.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        download: Whether a named dataset may be downloaded.
        options: How a folder or manifest is read; None reads a run's own data as training did.
        progress: Called after every batch with the number of images done and their total.

    Returns:
        A `MultiLabelEvaluation` of a multi-label classifier, a `RegressionEvaluation` of a regression, else
        an `Evaluation`.

    Raises:
        UserError: If there are no such images, none can be read, the data have classes that the classifier
            does not have, or are of another task, or the network's outputs are not finite.

    Examples:
        >>> evaluation = evaluate("runs/cats")
        >>> evaluation.metrics.accuracy, evaluation.warnings
    """
    check_at_least_1(batch_size=batch_size, workers=workers)
    classifier = as_classifier(model)
    check_calibrated(classifier, coverage=coverage, reject=reject)
    record = _run_record(classifier)
    dataset, runs_own = _find(classifier, record, data, download, options)
    chosen = dataset.split(split)
    name = _name_of(data, dataset, record if runs_own else None)
    if not len(chosen):
        if runs_own and record is not None and "folds" in classifier.provenance:
            raise UserError(f"split={split}: {_why_not_in_folds(split, record, dataset.dims)}")
        available = ", ".join(str(part) for part in np.unique(dataset.splits))
        raise UserError(
            f"split={split}: {name} has {INPUTS[dataset.dims]} only in: {available or 'no split'}"
        )
    if chosen.task != classifier.task:
        kind = "regression" if classifier.task == "regression" else f"{classifier.task} classifier"
        raise UserError(
            f"{name} has {chosen.label_kind}, which does not fit a {kind}; --task {classifier.task} reads it "
            "for one"
        )
    positions, logits, features, failures = _predict_all(
        classifier,
        chosen,
        embed=needs_features(classifier, reject),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    selective = select(classifier, logits, features, coverage=coverage, reject=reject)
    groups = None if chosen.groups is None else chosen.groups[positions]
    about: dict[str, Any] = {
        "classifier": classifier.network if classifier.path is None else str(classifier.path),
        "data": name,
        "split": split,
        "names": [chosen.names[position] for position in positions],
        "failures": failures,
        "known": None if record is None else record.count(chosen),
        "runs_in": classifier.runs_in,
        "tta": classifier.tta,
        "dims": classifier.preprocessing.dims,
    }
    if classifier.scales is not None:
        numbers = numbers_by_name(chosen.labels, chosen.classes, classifier.classes, name)[positions]
        predicted = unscaled(logits, classifier.scales)
        ordinal = all(scale.grades is not None for scale in classifier.scales)
        return RegressionEvaluation(
            **about,
            targets=classifier.classes,
            metrics=measure_numbers(predicted, numbers, ordinal=ordinal, groups=groups),
            numbers=numbers,
            predicted=predicted,
            ordinal=ordinal,
            groups=groups,
            selective=selective,
        )
    if classifier.thresholds is not None:
        several = labels_by_name(chosen.labels, chosen.classes, classifier.classes, name)[positions]
        return MultiLabelEvaluation(
            **about,
            classes=classifier.classes,
            thresholds=classifier.thresholds,
            metrics=measure_labels(
                logits,
                several,
                classifier.thresholds,
                temperature=classifier.temperature,
                groups=groups,
            ),
            labels=several,
            logits=logits,
            temperature=classifier.temperature,
            groups=groups,
            selective=selective,
        )
    labels = _labels_by_name(chosen, classifier.classes, name)[positions]
    return Evaluation(
        **about,
        classes=classifier.classes,
        metrics=measure(logits, labels, temperature=classifier.temperature, groups=groups),
        labels=labels,
        logits=logits,
        temperature=classifier.temperature,
        groups=groups,
        selective=selective,
    )


def evaluate_classes(
    model: str | os.PathLike[str] | Classifier, data: Any, *, what: str, **options: Any
) -> Evaluation:
    """`evaluate` for what is made for one class an image.

    Args:
        model: As of `evaluate`.
        data: As of `evaluate`.
        what: What is made for one class, for the message.
        options: Of `evaluate`.

    Raises:
        UserError: If it is a multi-label classifier or a regression, or `evaluate` fails.
    """
    classifier = as_classifier(model)
    check_single_label(classifier, what)
    evaluation = evaluate(classifier, data, **options)
    assert isinstance(evaluation, Evaluation)
    return evaluation


def _why_not_in_folds(split: str, record: _RunRecord, dims: int) -> str:
    """Why a run with folds has no such split, and what to do."""
    run, kind = record.splits.parent, INPUTS[dims]
    return (
        f"{run} is a run with folds without a {split} split, so its networks have seen all other {kind}; "
        f"out-of-fold results are in {run / run_folder.EVALUATION}; for the ensemble, name labeled {kind} "
        "that it has not seen"
    )


def _find(
    classifier: Classifier,
    record: _RunRecord | None,
    data: ImageDataset | str | os.PathLike[str] | None,
    download: bool,
    options: DataOptions | None,
) -> tuple[ImageDataset, bool]:
    """The images in their splits, and whether they are those of the classifier's own run."""
    if isinstance(data, ImageDataset):
        dataset = data.checked()
        return dataset, record is not None and record.is_of(dataset)
    if data is None:
        if options is not None:
            raise UserError("data: must be given with options of how it is read")
        named = True
        dataset = _find_runs_own(classifier, record, download)
    else:
        named = record is not None and record.is_named(data)
        if options is None and record is not None and named:
            options = record.options
        dims = classifier.preprocessing.dims
        options = (options or DataOptions()).of_model(classifier.task, classifier.classes, dims=dims)
        dataset = find_dataset(data, fractions=None, download=download, options=options)
    runs_own = record is not None and (named or record.holds_most_of(dataset))
    if record is not None and runs_own:
        dataset = record.splits_of(dataset)
    return log_listing(dataset), runs_own


def splits_there(
    classifier: Classifier,
    data: ImageDataset | str | os.PathLike[str] | None,
    *,
    download: bool = False,
    options: DataOptions | None = None,
) -> list[str]:
    """The splits that `evaluate` finds in the data."""
    dataset, _ = _find(classifier, _run_record(classifier), data, download, options)
    return [str(split) for split in np.unique(dataset.splits)]


def calibration_images(
    classifier: Classifier,
    data: ImageDataset | str | os.PathLike[str] | None,
    split: str,
    *,
    download: bool = False,
    options: DataOptions | None = None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """The images that `evaluate` takes, and those that the classifier was trained on; None if not there."""
    record = _run_record(classifier)
    dataset, runs_own = _find(classifier, record, data, download, options)
    if runs_own:
        own = dataset
    else:
        try:
            own = open_own_images(classifier)
        except UserError:
            return dataset.split(split), None
    training = own.split("train")
    return dataset.split(split), training if len(training) else None


def _predict_all(
    classifier: Classifier,
    dataset: ImageDataset,
    *,
    embed: bool,
    batch_size: int,
    workers: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, dict[str, str]]:
    """Indices (n,) of the readable images, logits (n, K), embeddings, and why others could not be read.

    Args:
        classifier: Computes them.
        dataset: The images.
        embed: Whether embeddings (n, F) are wanted; otherwise they are None.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        progress: Called after every batch with the number of images done and their total.
    """
    read: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    embedded: list[NDArray[np.float32]] = []
    failures: dict[str, str] = {}
    done = 0
    for batch in evaluation_batches(
        dataset,
        classifier.preprocessing,
        batch_size=batch_size,
        workers=workers,
        normalize=classifier.runtime.input_type == "float32",
    ):
        if len(batch.positions):
            read.append(batch.positions)
            logits.append(classifier.logits(batch.inputs))
            if not np.isfinite(logits[-1]).all():  # the first class would count as predicted
                raise UserError(f"{classifier.path or 'this model'}: {NOT_FINITE}")
            if embed:
                embedded.append(classifier.embed_batch(batch.inputs))
        failures |= {name: reason for name, reason in batch.outcomes() if reason is not None}
        done += len(batch.names)
        if progress is not None:
            progress(done, len(dataset))
    if not read:
        first = next(iter(failures.values()))
        raise UserError(f"none of the {done} {INPUTS[dataset.dims]} could be read; the first: {first}")
    features = np.concatenate(embedded) if embed else None
    return np.concatenate(read), np.concatenate(logits), features, failures


@dataclass(frozen=True, kw_only=True)
class _RunRecord:
    """Which images a run used for training, validation and testing.

    Attributes:
        data: The run's DATA argument; None if the model file does not record it.
        splits: The run's splits.csv.
        rows: Name → row of splits.csv.
        options: How the run's data were read.
    """

    data: str | None
    splits: Path
    rows: Mapping[str, SplitRow]
    options: DataOptions

    def is_named(self, data: str | os.PathLike[str]) -> bool:
        """Whether these are the run's data, named in any way."""
        return self.data is not None and same_data(data, self.data)

    def is_of(self, dataset: ImageDataset) -> bool:
        """Whether an open dataset is the run's, by its place and its names or by most of its images."""
        root = None if dataset.root is None else dataset.root.resolve()
        # A manifest beside the run's own has the same root, and other names.
        return (root == self.root and set(dataset.names) <= self.rows.keys()) or self.holds_most_of(dataset)

    def holds_most_of(self, dataset: ImageDataset) -> bool:
        """Whether it has nine tenths of the run's images, wherever they are."""
        return sum(split is not None for split in self.known_splits(dataset)) > 0.9 * len(self.rows)

    def splits_of(self, dataset: ImageDataset) -> ImageDataset:
        """The images that the run used, with its splits; the listing warns of others, which are left out."""
        splits = self.known_splits(dataset)
        known = np.flatnonzero([split is not None for split in splits])
        if len(known) < len(dataset):
            dataset.listing.warnings.append(
                f"{dataset.counted(len(dataset) - len(known))} that {self.splits} does not list, or that "
                "have changed since, are left out"
            )
        chosen = dataset.select(known)
        return replace(chosen, splits=np.array([split for split in splits if split], dtype="<U5"))

    def count(self, dataset: ImageDataset) -> dict[str, int]:
        """How many of the images the run used as "train", "val" and "test"."""
        used = Counter(self.known_splits(dataset))
        return {split: used[split] for split in SPLITS}

    def known_splits(self, dataset: ImageDataset) -> list[str | None]:
        """The split in which the run used each image; None for images that it did not use."""
        return [None if row is None else row.split for row in self.known_rows(dataset)]

    def known_rows(self, dataset: ImageDataset) -> list[SplitRow | None]:
        """The row of splits.csv that is each image; None for images that the run did not use.

        Images are identified by content; of images with equal content, the one with the same name counts.
        Version 0.1 did not record contents: then images are identified by path.
        """
        by_path = {self._path(row.path, self.root): row for row in self.rows.values()}
        by_content = {
            Content(row.size, row.hash): row
            for split in reversed(SPLITS)  # an image in several splits counts as training
            for row in self.rows.values()
            if row.split == split and row.hash
        }
        root = None if dataset.root is None else dataset.root.resolve()
        known = contents(dataset, of_sizes={size for size, _ in by_content})
        found: list[SplitRow | None] = []
        for name, content in zip(dataset.names, known, strict=True):
            same_path = by_path.get(self._path(name, root))
            named = [row for row in (same_path, self.rows.get(name)) if row is not None and row.hash]
            if same_path is not None and not same_path.hash:
                found.append(same_path)
            elif exact := [row for row in named if (row.size, row.hash) == content]:
                found.append(exact[0])
            else:
                found.append(by_content.get(content))
        return found

    @staticmethod
    def _path(name: str, root: Path | None) -> str:
        return name if root is None else (root / name).as_posix()

    @property
    def root(self) -> Path | None:
        """The folder that the names are relative to; None for a named dataset."""
        path = Path(self.data or "")
        if self.data is None or self.data in NAMED_SETS or not path.exists():
            return None
        return (path if path.is_dir() else path.parent).resolve()


def same_data(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Whether two DATA arguments name the same folder, manifest or named dataset, however spelled."""
    return _place(first) == _place(second)


def _place(data: str | os.PathLike[str]) -> str:
    """The absolute path of a folder or manifest, without symbolic links; the name of a named dataset."""
    return data if isinstance(data, str) and data in NAMED_SETS else os.path.realpath(data)


def _run_record(classifier: Classifier) -> _RunRecord | None:
    """Read splits.csv of the run folder that the classifier is in, if any."""
    if classifier.path is None:
        return None
    splits = classifier.path.with_name(run_folder.SPLITS)
    if not splits.is_file():
        return None
    data = classifier.provenance.get("data")
    rows = {row.path: row for row in read_split_rows(splits)}
    return _RunRecord(
        data=data if isinstance(data, str) else None,
        splits=splits,
        rows=rows,
        options=DataOptions.from_dict(classifier.provenance.get("data_options", {})),
    )


def known_rows(classifier: Classifier, dataset: ImageDataset) -> list[SplitRow | None] | None:
    """The row of the run's splits.csv that is each image, known by its content.

    Returns:
        None for an image that the classifier's training did not use; None alone if there is no record of it.
    """
    record = _run_record(classifier)
    return None if record is None else record.known_rows(dataset)


def open_own_images(classifier: Classifier, *, download: bool = False) -> ImageDataset:
    """Open the dataset of the classifier's own run, with the run's splits.

    Raises:
        UserError: If it is not in a run folder, or the images are no longer there.
    """
    return log_listing(_find_runs_own(classifier, _run_record(classifier), download))


def open_with_runs_splits(classifier: Classifier, data: str | os.PathLike[str]) -> ImageDataset:
    """Open data to be split, of which every image that the classifier's own run used keeps the run's split.

    Raises:
        UserError: If there are no such data, or they are the run's and images are no longer there.
    """
    record = _run_record(classifier)
    if record is not None and record.is_named(data):
        return log_listing(_find_runs_own(classifier, record, download=False))
    dims = classifier.preprocessing.dims
    options = DataOptions().of_model(classifier.task, classifier.classes, dims=dims)
    dataset = open_dataset(data, options=options)
    if record is None:
        return dataset
    pairs = zip(record.known_splits(dataset), dataset.splits.tolist(), strict=True)
    return replace(dataset, splits=np.array([known or drawn for known, drawn in pairs], dtype="<U5"))


def _find_runs_own(classifier: Classifier, record: _RunRecord | None, download: bool) -> ImageDataset:
    if record is None or record.data is None:
        raise UserError(
            f"{classifier.path or 'this classifier'} is not in a run folder: name the data to evaluate it on"
        )
    if record.splits is not None:
        run_folder.check_splits(Path(record.splits).parent)
    try:
        return find_dataset(record.data, splits=record.splits, download=download, options=record.options)
    except UserError as error:
        raise UserError(f"{error}; it was trained on these data: if they have moved, name them") from error


def _name_of(
    data: ImageDataset | str | os.PathLike[str] | None, dataset: ImageDataset, record: _RunRecord | None
) -> str:
    if data is not None and not isinstance(data, ImageDataset):
        return os.fspath(data)
    if record is not None and record.data is not None:
        return record.data
    return f"{INPUTS[dataset.dims]} in memory" if dataset.root is None else str(dataset.root)


def _labels_by_name(dataset: ImageDataset, classes: tuple[str, ...], name: str) -> NDArray[np.int64]:
    """Labels of the images as indices into the classifier's classes."""
    position = {label: index for index, label in enumerate(classes)}
    present = [dataset.classes[label] for label in np.unique(dataset.labels)]
    if unknown := [label for label in present if label not in position]:
        raise UserError(
            f"{name} has classes that the classifier does not have: {listed(unknown)} "
            f"(its classes: {listed(classes)})"
        )
    table = np.array([position.get(label, -1) for label in dataset.classes], dtype=np.int64)
    return table[dataset.labels]
