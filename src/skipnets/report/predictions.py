"""Predictions for images by a model that was not trained on them: out of fold, held out, or by another model.

Shapes: N images of the dataset, n of them with a prediction, K classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.classifier import Classifier, as_classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.manifest_files import relative_name
from skipnets.errors import UserError, listed, one_line
from skipnets.evaluation.evaluating import evaluate, known_rows
from skipnets.evaluation.regression_evaluation import RegressionEvaluation
from skipnets.terminal import from_csv_text

__all__ = ["TABLES", "UnseenPredictions", "predict_unseen", "read_prediction_table"]

TABLES = (".parquet", ".csv", ".jsonl")
_PREFIX = "p:"


@dataclass(frozen=True, kw_only=True, eq=False)
class UnseenPredictions:
    """Predictions for those images of a dataset that the model was not trained on.

    Attributes:
        source: Where they come from, in words.
        classes: The K classes.
        images: (n,) positions in the dataset; at least one is of a class in `classes`.
        probabilities: (n, K); of targets, the predicted numbers.
        trained_on: How many images have none because the model was trained on them.
    """

    source: str
    classes: tuple[str, ...]
    images: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    trained_on: int = 0


def read_prediction_table(path: str | os.PathLike[str], dataset: ImageDataset) -> UnseenPredictions:
    """Read a table of probabilities.

    Args:
        path: A .parquet, .csv or .jsonl file with a column `path`, as in the dataset, and one for each class,
            called by its name, or "p:" and its name, as `skipnets evaluate --predictions` writes them.
        dataset: The images.

    Raises:
        UserError: The file holds something else, lists an image twice, or has nothing about these images or
            none of their classes.
    """
    names, classes, probabilities = _read_table(Path(path), dataset.classes, task=dataset.task)
    position = {_valid(name): image for image, name in enumerate(dataset.names)}
    root = dataset.root
    found = [position.get(name) for name in names]
    if root is not None:
        found = [
            image if image is not None else position.get(relative_name(root, name))
            for name, image in zip(names, found, strict=True)
        ]
    rows = [row for row, image in enumerate(found) if image is not None]
    if not rows:
        raise UserError(
            f"{path}: predicts none of the images; its paths are such as {listed(names, 2)}, the images' "
            f"{listed(dataset.names, 2)}"
        )
    images = np.array([image for image in found if image is not None], dtype=np.int64)
    order = np.argsort(images)
    # Names that differ may be of one file: relative to the root, and absolute.
    repeated = np.flatnonzero(np.diff(images[order]) == 0)
    if len(repeated):
        raise UserError(f"{path}: lists an image twice: {dataset.names[images[order][repeated[0]]]}")
    if not _of_known_classes(dataset, classes)[images].any():
        raise UserError(f"{path}: cannot judge these images: {_knows_none(classes)}")
    return UnseenPredictions(
        source=os.fspath(path),
        classes=classes,
        images=images[order],
        probabilities=probabilities[rows][order],
    )


def predict_unseen(
    model: str | os.PathLike[str] | Classifier,
    dataset: ImageDataset,
    *,
    batch_size: int,
    workers: int | None,
    runtime: str,
    device: str,
    threads: int | None,
    progress: Callable[[int, int], object] | None = None,
) -> UnseenPredictions:
    """Predict the images of a dataset that a classifier was not trained on.

    The predictions that lie in its run folder, of test images or out of fold, are taken as they are. Images
    are known again by content.

    Args:
        model: A run folder, a model file, an export or a classifier.
        dataset: The images.
        batch_size: Images per forward pass.
        workers: Threads that read images.
        runtime: As for `skipnets.load`.
        device: As for `skipnets.load`.
        threads: As for `skipnets.load`.
        progress: Called after every batch with the number of images done and their total.

    Raises:
        UserError: There is no such model, or it was trained on all of the images, or has none of their
            classes.
    """
    classifier = as_classifier(model, runtime=runtime, device=device, threads=threads)
    rows = known_rows(classifier, dataset) or [None] * len(dataset)
    if dataset.task != classifier.task:
        raise UserError(
            f"model={classifier.path or 'the classifier'}: is for task={classifier.task}, and the data have "
            f"{dataset.label_kind}"
        )
    known_classes = _of_known_classes(dataset, classifier.classes)
    probabilities = np.full((len(dataset), len(classifier.classes)), np.nan)
    stored = _stored(classifier)
    for image, row in enumerate(rows):
        if row is not None and row.path in stored:
            probabilities[image] = stored[row.path]
    from_table = ~np.isnan(probabilities[:, 0])
    trained_on = np.array([row is not None and row.split == "train" for row in rows]) & ~from_table
    missing = np.flatnonzero(~from_table & ~trained_on & known_classes)
    if len(missing):
        evaluation = evaluate(
            classifier,
            _with_known_labels(dataset.select(missing), classifier.classes),
            split="all",
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        found = (
            evaluation.predicted if isinstance(evaluation, RegressionEvaluation) else evaluation.probabilities
        )
        position = {dataset.names[image]: image for image in missing.tolist()}
        probabilities[[position[name] for name in evaluation.names]] = found
    images = np.flatnonzero(~np.isnan(probabilities[:, 0]) & known_classes)
    if not len(images):
        reason = (
            "it was trained on all of them; out-of-fold predictions: skipnets train DATA --folds 5"
            if trained_on.any()
            else _knows_none(classifier.classes)
        )
        raise UserError(f"model={classifier.path or 'the classifier'}: cannot judge these images: {reason}")
    source = classifier.network if classifier.path is None else str(classifier.path)
    return UnseenPredictions(
        source=source,
        classes=classifier.classes,
        images=images,
        probabilities=probabilities[images],
        trained_on=int(trained_on.sum()),
    )


def _of_known_classes(dataset: ImageDataset, classes: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether a classifier with these classes can judge each image's label, or any of its labels."""
    known = np.isin(dataset.classes, classes)
    of_images: NDArray[np.bool_] = np.full(len(dataset), known.any())
    return of_images if dataset.labels.ndim == 2 else known[dataset.labels]


def _with_known_labels(dataset: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """The images with those of their labels that a classifier has; of one class an image, as they are."""
    if not dataset.multi_label:
        return dataset
    known = np.isin(dataset.classes, classes)
    names = tuple(name for name in dataset.classes if name in classes)
    return replace(dataset, classes=names, labels=dataset.labels[:, known])


def _knows_none(classes: Sequence[str]) -> str:
    return f"it knows none of their classes (its classes: {listed(classes)})"


def _stored(classifier: Classifier) -> dict[str, NDArray[np.float64]]:
    """Name → probabilities in the classifier's run folder, if there are any, of its classes."""
    path = None if classifier.path is None else classifier.path.with_name(run_folder.PREDICTIONS)
    if path is None or not path.is_file():
        return {}
    names, classes, probabilities = _read_table(path, classifier.classes, task=classifier.task)
    return dict(zip(names, probabilities, strict=True)) if classes == classifier.classes else {}


def _read_table(
    path: Path, expected: Sequence[str], *, task: str
) -> tuple[list[str], tuple[str, ...], NDArray[np.float64]]:
    """Names, classes and (n, K) probabilities, which sum to 1 where an image has one class, or numbers."""
    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": lambda file: pyarrow.csv.read_csv(
            file, convert_options=pyarrow.csv.ConvertOptions(column_types={"path": pyarrow.string()})
        ),
        ".jsonl": pyarrow.json.read_json,
    }
    try:
        table = readers[path.suffix.lower()](path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a table of predictions ({one_line(error)})") from error
    columns = [name for name in table.column_names if name.startswith(_PREFIX)]
    columns = columns or [name for name in table.column_names if name in expected and name != "path"]
    if "path" not in table.column_names or len(columns) < (2 if task == "single-label" else 1):
        raise UserError(
            f"{path}: must have a column path and one for each class, such as p:{expected[0]}; "
            f"it has {listed(table.column_names, 8)}"
        )
    repeated = [name for name in ("path", *columns) if table.column_names.count(name) > 1]
    if repeated:
        raise UserError(f"{path}: has {table.column_names.count(repeated[0])} columns {repeated[0]}, not one")
    try:
        probabilities = np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: probabilities must be numbers ({one_line(error)})") from error
    wrong = ~np.isfinite(probabilities).all(1)
    if task != "regression":
        wrong |= ~((probabilities >= 0) & (probabilities <= 1.01)).all(1)
    if task == "single-label":
        wrong |= ~(np.abs(probabilities.sum(1) - 1) <= 0.01)
    names = [str(name) for name in table["path"].to_pylist()]
    if path.suffix.lower() == ".csv":
        names = [from_csv_text(name) for name in names]
    if wrong.any():
        what = "numbers" if task == "regression" else "probabilities"
        right = {"single-label": "sum to 1", "multi-label": "be from 0 to 1", "regression": "be finite"}[task]
        raise UserError(f"{path}: the {what} of {names[wrong.argmax()]} must {right}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: lists an image twice: {repeated[0]}")
    return names, tuple(name.removeprefix(_PREFIX) for name in columns), probabilities


def _valid(name: str) -> str:
    """A name as Parquet holds it, in valid UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
