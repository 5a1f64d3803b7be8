"""Write a run's report: one self-contained HTML file.

The page has no script, and its Content-Security-Policy forbids every request. The images of a cell open in
the browser's own popover. All text is escaped by Jinja.

Shapes: N images, K classes.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from skipnets import run_folder
from skipnets.axes import worded
from skipnets.classifier import Classifier, describe, load
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.options import DataOptions
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.data.splits import SPLITS, read_splits
from skipnets.errors import UserError, check_at_least_1, check_path
from skipnets.evaluation.calibration import FEW, NoTemperatureError, fit_temperature
from skipnets.evaluation.confusion import tints
from skipnets.evaluation.evaluating import evaluate_classes, open_own_images, same_data
from skipnets.evaluation.intervals import Interval, share_interval
from skipnets.evaluation.metrics import Metrics, measure
from skipnets.evaluation.reliability import reliability
from skipnets.evaluation.saving import inputs_noun
from skipnets.files import atomic_path
from skipnets.probabilities import softmax
from skipnets.report import charts
from skipnets.report.bootstrap import resample
from skipnets.report.comparison import edge_note, metric_interval
from skipnets.report.folds import FoldClassifiers, fold_section
from skipnets.report.gallery import (
    ALL_CELLS,
    GALLERY,
    RIGHT_CELL,
    WRONG_CELL,
    AnyResults,
    Thumbnails,
    confusion_cells,
    least_confident_correct,
    most_confident_mistakes,
)
from skipnets.report.label_page import label_sections
from skipnets.report.label_results import LabelResults, read_label_results
from skipnets.report.reading import evaluated_task
from skipnets.report.regression_page import regression_sections
from skipnets.report.regression_results import RegressionResults, read_regression_results
from skipnets.report.rendering import area, decimal, render
from skipnets.report.results import Results, read_results
from skipnets.report.thumbnails import data_uri
from skipnets.tables import percent
from skipnets.training.batches import read_batch
from skipnets.training.config import TrainConfig
from skipnets.training.curves import headline_name, headline_text, loss_note
from skipnets.training.run import Row, Run

__all__ = ["write_report"]

RESAMPLES = 1000
_MATRIX_UP_TO = 30  # classes; beyond, the largest confusions are listed instead
_CONFUSIONS = 60
_LISTED = 8  # largest confusions next to the matrix
_SINGLE_CURVES = 24  # classes with curves of their own
_FAILURES = 200

# Metric → title, number format, meaning.
_METRICS = {
    "accuracy": ("Accuracy", "percent", "share of images whose predicted class is correct"),
    "balanced_accuracy": ("Balanced accuracy", "percent", "mean recall over the classes"),
    "macro_f1": ("Macro F1", "number", "F1 score averaged over the classes"),
    "macro_auroc": ("Macro AUROC", "area", "area under the ROC curve, averaged over the classes"),
    "nll": ("Negative log-likelihood", "number", "in nats; lower is better"),
    "ece": (
        "Expected calibration error (ECE)",
        "percent",
        "mean gap between confidence and accuracy; lower is better",
    ),
}


def write_report(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Path:
    """Write a run's report.

    Metrics are those of the predictions in the run folder, at the model file's temperature. If the images
    have moved or been deleted, the report is written without them.

    Args:
        run: A run folder or a `skipnets.training.Run` whose training is finished; or the folder of an
            ensemble into which it was evaluated.
        output: An HTML file; None uses `report.html` in the run folder.
        device: Device on which Grad-CAM runs.
        threads: CPU threads that compute; None leaves it to PyTorch.
        workers: Threads that read images; None uses one per core.
        progress: Called with the name of the current step, the number of items done and their total.

    Returns:
        The path of the file.

    Raises:
        UserError: If the folder holds no finished run, or the file cannot be written.

    Examples:
        >>> write_report("runs/cats")
        PosixPath('runs/cats/report.html')
    """
    check_path("run", run)
    folder = Run(Path(run))
    path = folder.folder / run_folder.REPORT if output is None else Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={path}: must end in .html")
    check_at_least_1(workers=workers)
    page = _page(folder, device=device, threads=threads, workers=workers, progress=progress or _silent)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _page(
    run: Run,
    *,
    device: str,
    threads: int | None,
    workers: int | None,
    progress: Callable[[str, int, int], object],
) -> str:
    if not run.folder.is_dir():
        raise UserError(f"{run.folder} is not a run folder: give one that training wrote")
    joins_runs = _joins_runs(run)
    for file in (run.splits, run.model) if joins_runs else (run.config_file, run.splits, run.model):
        if not file.exists():
            raise UserError(
                f"{run.folder} is not a run folder (no {file.name}): give one that training wrote"
            )
    if joins_runs and not run.evaluation.exists():
        raise UserError(
            f"{run.folder} was not evaluated yet: skipnets evaluate {run.folder} --output {run.folder}"
        )
    classifier = load(run.model, runtime="torch", device=device, threads=threads)
    task = evaluated_task(run.folder)
    if task == "multi-label":
        return _label_page(run, classifier, device, progress)
    if task == "regression":
        return _regression_page(run, classifier, device, progress)
    results = read_results(run.folder)
    images, moved = _images(classifier, results)
    in_folds = "folds" in results.evaluation
    judges = FoldClassifiers(run, device) if in_folds else None
    thumbnails = Thumbnails(results, images, classifier, judges)
    metrics = measure(results.logits, results.labels, temperature=results.temperature, groups=results.groups)
    [sample] = resample(
        [results.probabilities], results.labels, units=results.units, resamples=RESAMPLES, seed=0
    )
    return render(
        "page.html.jinja",
        about=_about(run, results, thumbnails, moved),
        tiles=_tiles(results, metrics, sample),
        edge_note=edge_note(sample),
        groups=None if metrics.groups is None else f"{metrics.groups:,}",
        classes=_classes(results, metrics),
        learning=_learning(run),
        folds=fold_section(run, results.evaluation),
        confusion=_confusion(results, metrics, thumbnails, progress),
        calibration=_calibration(None if in_folds else classifier, results, images, workers, progress),
        curves=_curves(results, metrics),
        galleries=_galleries(results, thumbnails, progress),
        balance=_balance(run, results),
        failures=_failures(run, results),
    )


def _joins_runs(run: Run) -> bool:
    """Whether a folder holds an ensemble of separate runs (`skipnets.ensembling`), which has no settings."""
    return (
        not run.config_file.exists()
        and run.model.exists()
        and "networks" in describe(run.model)["provenance"]
    )


def _label_page(
    run: Run, classifier: Classifier, device: str, progress: Callable[[str, int, int], object]
) -> str:
    results = read_label_results(run.folder)
    images, moved = _images(classifier, results)
    judges = FoldClassifiers(run, device) if "folds" in results.evaluation else None
    thumbnails = Thumbnails(results, images, classifier, judges)
    return render(
        "labels.html.jinja",
        about=_about(run, results, thumbnails, moved),
        learning=_learning(run),
        folds=fold_section(run, results.evaluation),
        failures=_failures(run, results),
        **label_sections(results, classifier, thumbnails, read_splits(run.splits), progress),
    )


def _regression_page(
    run: Run, classifier: Classifier, device: str, progress: Callable[[str, int, int], object]
) -> str:
    results = read_regression_results(run.folder)
    images, moved = _images(classifier, results)
    judges = FoldClassifiers(run, device) if "folds" in results.evaluation else None
    thumbnails = Thumbnails(results, images, classifier, judges)
    return render(
        "regression.html.jinja",
        about=_about(run, results, thumbnails, moved),
        learning=_learning(run),
        folds=fold_section(run, results.evaluation),
        failures=_failures(run, results),
        **regression_sections(results, thumbnails, read_splits(run.splits), progress),
    )


def _images(classifier: Classifier, results: AnyResults) -> tuple[ImageDataset | None, str | None]:
    """The images that were evaluated, or why they cannot be opened."""
    data = results.evaluation["data"]
    own = classifier.provenance.get("data")
    try:
        if own is not None and same_data(data, own):
            return open_own_images(classifier), None
        dims = classifier.preprocessing.dims
        options = DataOptions().of_model(classifier.task, classifier.classes, dims=dims)
        return open_dataset(data, fractions=None, options=options), None
    except UserError as error:
        return None, str(error)


def _about(run: Run, results: AnyResults, thumbnails: Thumbnails, moved: str | None) -> dict[str, Any]:
    """Facts about the run: data, model, recipe, environment."""
    model = describe(run.model)
    environment = json.loads(run.environment.read_text(encoding="utf-8")) if run.environment.is_file() else {}
    counts = Counter(split for _, split in read_splits(run.splits).values())
    joins_runs = _joins_runs(run)
    origin = (
        _facts_of_ensemble(model, counts)
        if joins_runs
        else _facts_of_training(run, model, counts, environment)
    )
    facts = {
        "Data": origin.pop("Data"),
        _class_noun(results): f"{len(results.classes):,}",
        "Model": origin.pop("Model"),
        "Input": Preprocessing.from_dict(model["preprocessing"]).summary(),
        **origin,
        "Model file": f"{run.model} ({model['bytes'] / 2**20:.1f} MiB)",
    }
    notes = list(results.evaluation.get("warnings", ()))
    noun = inputs_noun(results.evaluation).removesuffix("s")
    if run.skipped:
        unreadable = counted(len(run.skipped), noun)
        notes.append(f"{unreadable} could not be read during training and left out")
    if moved is not None:
        notes.append(f"the {noun}s are not shown: {moved}")
    elif thumbnails.missing:
        notes.append(f"{thumbnails.missing:,} {noun}s are not shown: they are no longer where they were")
    return {
        "model": _names(model),
        "title": Path(results.evaluation["data"]).name or results.evaluation["data"],
        "data": results.evaluation["data"],
        "split": results.evaluation["split"],
        "images": len(results.names),
        "noun": noun,
        "unseen": (results.evaluation.get("known") or {"train": 1})["train"] == 0,
        "created": None if joins_runs else model["provenance"].get("created"),
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": importlib.metadata.version("skipnets"),
        "run": str(run.folder),
        "facts": facts,
        "notes": notes,
        "config": run.config_file.read_text(encoding="utf-8") if run.config_file.exists() else None,
        "environment": json.dumps(environment, indent=2, ensure_ascii=False) if environment else None,
    }


def _names(model: Mapping[str, Any]) -> str:
    """The name of the network, or of each different one of an ensemble."""
    networks = model.get("architectures", [model["architecture"]])
    return " + ".join(dict.fromkeys(each["name"] for each in networks))


def _facts_of_ensemble(model: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, str]:
    """Facts about an ensemble of separate runs, each of which has a report of its own."""
    provenance = model["provenance"]
    return {
        "Data": f"{provenance.get('data', 'of several runs')}: " + _division(counts),
        "Model": f"ensemble of {model['members']} networks, {model['parameters']:,} parameters",
        "Networks": ", ".join(provenance["networks"]),
    }


def _facts_of_training(
    run: Run, model: Mapping[str, Any], counts: Mapping[str, int], environment: Mapping[str, Any]
) -> dict[str, str]:
    """Facts about a run: data, model, recipe, environment."""
    config = run.config
    runs = run.folds or [run]
    rows = [row for each in runs for row in each.rows]
    best = ", ".join(str(each.best_epoch) for each in runs)
    libraries = environment.get("libraries", {})
    machine = environment.get("gpus") or [environment.get("processor", "unknown")]
    return {
        "Data": f"{config.data}: " + _division(counts, folds=len(run.folds), dims=config.dims or 2),
        "Model": ("" if len(runs) == 1 else f"ensemble of {len(runs)} ")
        + f"{model['architecture']['name']}, {model['parameters']:,} parameters"
        + ("" if len(runs) == 1 else f" ({model['parameters'] // len(runs):,} each)"),
        "Initial weights": config.weights or "random",
        "Recipe": f"{config.recipe}: {config.optimizer}, learning rate {config.lr:g}, "
        f"batch size {config.batch_size}, augmentation {config.augmentation}",
        "Epochs": f"{len(rows)} of {config.epochs}; epoch {best} was the best on validation data"
        if len(runs) == 1
        else f"{config.epochs} a fold; the best on validation data were {best}",
        "Training time": _training_time(rows),
        "Hardware": f"{machine[0]}, {environment.get('processors', '?')} processors",
        "Software": ", ".join(
            f"{name} {libraries[name]}" for name in ("skipnets", "torch", "torchvision") if name in libraries
        )
        + f", Python {environment.get('python', '?')}",
        "Seed": str(config.seed),
    }


def _class_noun(results: AnyResults) -> str:
    if isinstance(results, RegressionResults):
        return "Targets"
    return "Labels" if isinstance(results, LabelResults) else "Classes"


def _division(counts: Mapping[str, int], *, folds: int = 0, dims: int = 2) -> str:
    """How many images are in each split, or in the folds."""
    if not folds:
        return ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
    in_folds = f"{counts['train']:,} images in {folds} folds, validation images cut from the others in each"
    return worded(in_folds, dims) + (f"; {counts['test']:,} test" if counts["test"] else "; no test split")


def _tiles(results: Results, metrics: Metrics, sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics at the top of the page, each with its interval."""
    formats = {"percent": percent, "number": decimal, "area": area}
    dims = results.evaluation.get("dims", 2)
    tiles = []
    for name, (title, format_name, meaning) in _METRICS.items():
        value = getattr(metrics, name)
        if not math.isfinite(value):
            continue
        interval = metric_interval(name, results.probabilities, results.labels, sample, results.units)
        format_value = formats[format_name]
        tiles.append(
            {
                "title": title,
                "meaning": worded(meaning, dims),
                "value": format_value(value),
                "interval": None
                if interval is None
                else f"{format_value(interval[0])} to {format_value(interval[1])}",
            }
        )
    return tiles


def _classes(results: Results, metrics: Metrics) -> list[dict[str, Any]]:
    right = results.predicted == results.labels

    def recall_interval(index: int) -> Interval | None:
        of = results.labels == index
        units = None if results.units is None else np.unique(results.units[of], return_inverse=True)[1]
        return share_interval(right[of], units) if of.any() else None

    return [
        {
            "name": name,
            "precision": metrics.precision[index],
            "recall": metrics.recall[index],
            "interval": recall_interval(index),
            "f1": metrics.f1[index],
            "auroc": metrics.auroc[index],
            "support": int(metrics.support[index]),
        }
        for index, name in enumerate(results.classes)
    ]


def _learning(run: Run) -> dict[str, Any] | None:
    rows = run.rows
    if not rows:
        return None
    loss, accuracy, rate = charts.draw_learning(rows, run.best_epoch)
    measures = charts.draw_measures(rows, run.config.dims or 2)
    best = next((row for row in rows if row.epoch == run.best_epoch), rows[-1])
    return {
        "loss": Markup(loss),  # noqa: S704 - drawn here, from numbers alone
        "accuracy": Markup(accuracy),  # noqa: S704
        "rate": Markup(rate),  # noqa: S704
        "loss_note": loss_note(run.config),
        "best": best,
        "score": headline_name(best),
        "best_score": headline_text(best),
        "schedule": f"{run.config.schedule} schedule, at most {max(row.lr for row in rows):.3g}",
        "measures": [(title, Markup(chart)) for title, chart in measures.items()],  # noqa: S704
        "trained": best.val_average_precision is None and any(row.train_accuracy is not None for row in rows),
        "batch": _batch(run),
        "batch_note": _batch_note(run.config),
    }


def _batch_note(config: TrainConfig) -> str:
    """What was done to the images of a batch."""
    mixes = {"MixUp": config.mixup, "CutMix": config.cutmix}
    used = " or ".join(name for name, strength in mixes.items() if strength)
    augmented = (
        "out augmentation" if config.augmentation == "none" else f" augmentation {config.augmentation}"
    )
    return f"with{augmented}" + (f" and with {used}" if used else "")


def _batch(run: Run) -> list[dict[str, Any]]:
    """The first training batch as the network saw it; empty for a run that kept none."""
    if not run.batches.is_file():
        return []
    return [{"image": data_uri(shown.image), "labels": shown.labels} for shown in read_batch(run.batches)]


def _confusion(
    results: Results, metrics: Metrics, thumbnails: Thumbnails, progress: Callable[[str, int, int], object]
) -> dict[str, Any]:
    """The matrix as rows of cells, or the largest confusions, and the images of each cell."""
    matrix, support = metrics.confusion, metrics.support
    depths, deepest = tints(matrix)
    is_matrix = len(results.classes) <= _MATRIX_UP_TO
    cells = confusion_cells(results)
    if not is_matrix:
        cells = [cell for cell in cells if cell.true != cell.predicted][:_CONFUSIONS]
    opened = {}
    for done, cell in enumerate(cells):
        progress(f"{inputs_noun(results.evaluation)} of the confusion matrix", done, len(cells))
        images = [_image(results, index, thumbnails.thumbnail(index)) for index in cell.shown]
        opened[cell.true, cell.predicted] = {
            "id": f"cell-{cell.true}-{cell.predicted}",
            "true": results.classes[cell.true],
            "predicted": results.classes[cell.predicted],
            "right": cell.true == cell.predicted,
            "count": cell.count,
            "share": float(cell.count / support[cell.true]),
            "images": [image for image in images if image["image"] is not None],
        }
    rows = []
    for true, name in enumerate(results.classes if is_matrix else ()):
        row = []
        for predicted in range(len(results.classes)):
            row.append(
                {
                    "count": int(matrix[true, predicted]),
                    "right": true == predicted,
                    "depth": round(float(depths[true, predicted]), 3),
                    "opens": opened.get((true, predicted)),
                }
            )
        rows.append({"name": name, "recall": metrics.recall[true], "cells": row})
    return {
        "classes": results.classes,
        "rows": rows,
        "precision": metrics.precision,
        "opened": list(opened.values()),
        "deepest": deepest,
        "largest": [cell for cell in opened.values() if not cell["right"]][:_LISTED],
        "short": max(map(len, results.classes)) <= 5,
        "wrong": int(matrix.sum() - matrix.diagonal().sum()),
        "limits": {"wrong": WRONG_CELL, "right": RIGHT_CELL, "all": ALL_CELLS},
    }


def _calibration(
    classifier: Classifier | None,
    results: Results,
    dataset: ImageDataset | None,
    workers: int | None,
    progress: Callable[[str, int, int], object],
) -> dict[str, Any]:
    """Reliability at temperature 1 and at the model's temperature; one is fitted here if it has none.

    The classifier is None where several have predicted.
    """
    kind = inputs_noun(results.evaluation)
    stored = classifier is not None and classifier.temperature != 1
    temperature, fitted_on, reason = 1.0, None, None
    if classifier is None:
        reason = "the predictions are those of several models"
    elif stored:
        temperature = classifier.temperature
        record = classifier.provenance.get("calibration", {})
        fitted_on = f"{record.get('images', '?')} {kind} ({record.get('data')}, {record.get('split')})"
    elif dataset is None or not len(dataset.split("val")):
        reason = f"there are no validation {kind} to fit a temperature on"
    else:
        evaluation = evaluate_classes(
            classifier,
            dataset,
            what="report",
            split="val",
            workers=workers,
            progress=lambda done, total: progress(f"validation {kind}, for the temperature", done, total),
        )
        try:
            temperature = fit_temperature(evaluation.logits, evaluation.labels)
            fitted_on = f"{len(evaluation.names):,} validation {kind}"
            if len(evaluation.names) < FEW:
                fitted_on += ", which is few"
        except NoTemperatureError as error:
            reason = worded(str(error), results.evaluation.get("dims", 2))
    diagrams = []
    for title, at in (("Before", 1.0), ("After", temperature)):
        if title == "After" and fitted_on is None:
            continue
        bins = reliability(softmax(results.logits, at), results.labels)
        metrics = measure(results.logits, results.labels, temperature=at)
        names = ("confidence", "accuracy", kind)
        chart = charts.draw_reliability(bins, f"reliability-{title}", names=names)
        diagrams.append(
            {
                "title": title,
                "temperature": at,
                "ece": metrics.ece,
                "nll": metrics.nll,
                "chart": Markup(chart),  # noqa: S704
            }
        )
    return {"diagrams": diagrams, "stored": stored, "fitted_on": fitted_on, "reason": reason}


def _curves(results: Results, metrics: Metrics) -> dict[str, Any] | None:
    """Precision-recall and ROC curves: all classes together, the hardest in color, then each class alone."""
    curves = {
        index: curve
        for index in range(len(results.classes))
        if (curve := charts.one_class_curves(results.probabilities[:, index], results.labels == index))
    }
    if not curves:
        return None
    hardest = sorted(curves, key=lambda index: curves[index].average_precision)
    colored = dict(zip(hardest, charts.SERIES, strict=False))
    together = charts.draw_curves([(curves[index], colored.get(index)) for index in curves], "curves")
    single = []
    for index in hardest[:_SINGLE_CURVES]:
        chart = charts.draw_one_class(curves[index], f"curves-{index}")
        single.append(
            {
                "name": results.classes[index],
                "average_precision": curves[index].average_precision,
                "auroc": metrics.auroc[index],
                "chart": Markup(chart),  # noqa: S704
            }
        )
    return {
        "precision_recall": Markup(together[0]),  # noqa: S704
        "roc": Markup(together[1]),  # noqa: S704
        "legend": [
            {
                "name": results.classes[index],
                "series": f"c{number}",
                "average_precision": curves[index].average_precision,
                "auroc": metrics.auroc[index],
            }
            for number, index in enumerate(colored, start=1)
        ],
        "others": len(curves) - len(colored),
        "single": single,
        "without": len(curves) - len(single),
    }


def _galleries(
    results: Results, thumbnails: Thumbnails, progress: Callable[[str, int, int], object]
) -> list[dict[str, Any]]:
    kinds = (
        ("Most confident mistakes", True, most_confident_mistakes(results)),
        ("Least confident correct predictions", False, least_confident_correct(results)),
    )
    total, done = sum(len(positions) for _, _, positions in kinds), 0
    galleries = []
    for title, wrong, positions in kinds:
        images = []
        for index in positions:
            progress("Grad-CAM", done, total)
            predicted, true = results.predicted[index], results.labels[index]
            explained = [results.classes[predicted]] + ([results.classes[true]] if wrong else [])
            image, overlays = thumbnails.explained(index, explained)
            images.append(
                {
                    **_image(results, index, image),
                    "overlays": [
                        {"image": overlay, "label": label}
                        for overlay, label in zip(overlays, explained, strict=False)
                    ],
                }
            )
            done += 1
        galleries.append({"title": title, "wrong": wrong, "images": images, "most": GALLERY})
    return galleries


def _image(results: Results, index: int, image: str | None) -> dict[str, Any]:
    predicted, true = int(results.predicted[index]), int(results.labels[index])
    probabilities = results.probabilities[index]
    return {
        "name": results.names[index],
        "image": image,
        "predicted": results.classes[predicted],
        "true": results.classes[true],
        "probability": float(probabilities[predicted]),
        "of_true": float(probabilities[true]),
        "runner_up": results.classes[
            int(np.argsort(-probabilities, kind="stable")[min(1, len(probabilities) - 1)])
        ],
    }


def _balance(run: Run, results: Results) -> dict[str, Any]:
    """Number of images of each class in every split."""
    counts = Counter(read_splits(run.splits).values())
    labels = list(dict.fromkeys([*results.classes, *(label for label, _ in counts)]))
    by_split = [[counts[label, split] for split in SPLITS] for label in labels]
    sizes = [sum(each) for each in by_split]
    return {
        "rows": [
            {"name": label, "counts": each, "all": size}
            for label, each, size in zip(labels, by_split, sizes, strict=True)
        ],
        "most": max(sizes),
        "splits": SPLITS,
        "ratio": max(sizes) / min(sizes) if min(sizes) else None,
    }


def _failures(run: Run, results: AnyResults) -> dict[str, Any]:
    evaluated: Mapping[str, str] = results.evaluation.get("failures", {})
    failures = {**run.skipped, **evaluated}
    return {"shown": list(failures.items())[:_FAILURES], "count": len(failures)}


def _training_time(rows: Sequence[Row]) -> str:
    """How long the epochs took, and how much of the processor's time."""
    text = _duration(sum(row.seconds + row.validation_seconds for row in rows))
    used = [row.processor_seconds for row in rows if row.processor_seconds is not None]
    return f"{text} ({_duration(sum(used))} of processor time)" if used else text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _silent(*_: object) -> None:
    pass
