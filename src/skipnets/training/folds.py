"""Cross-validation: a run for each fold, the predictions for every image, and the folds as one classifier.

runs/NAME/
  run.yaml, environment.json    as of any run; what the data decided is the same in all folds
  splits.csv                    with the fold that holds out each image
  fold-1/, fold-2/, ...         runs, whose test split is what the fold holds out
  predictions.parquet           of every image by the model of its fold; also evaluation.json, confusion.png
  model.safetensors             the ensemble of the folds' models
  test/                         the ensemble's evaluation on the test split, if the data have one
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import nn

from skipnets import run_folder
from skipnets.axes import INPUTS, worded
from skipnets.classifier import Classifier, load
from skipnets.data.contents import contents
from skipnets.data.dataset import ImageDataset
from skipnets.data.folds import Folds, deal_out_folds, read_folds
from skipnets.data.sources import find_with_own_splits
from skipnets.data.splits import find_shares
from skipnets.data.survey import survey
from skipnets.duration import parse_duration
from skipnets.errors import UserError
from skipnets.evaluation.evaluating import evaluate
from skipnets.evaluation.label_out_of_fold import LabelFoldResult, LabelsOutOfFold, labels_out_of_fold
from skipnets.evaluation.out_of_fold import FoldResult, OutOfFold, out_of_fold
from skipnets.evaluation.predictions import read_predictions
from skipnets.evaluation.regression_out_of_fold import (
    NumberFoldResult,
    NumbersOutOfFold,
    numbers_out_of_fold,
)
from skipnets.evaluation.thresholds import ThresholdRule
from skipnets.training import budget
from skipnets.training.announcement import Remarks, announcement
from skipnets.training.checks import check_images
from skipnets.training.config import FIELDS, TrainConfig
from skipnets.training.extending import extend, extended_config
from skipnets.training.interruption import resumable
from skipnets.training.prepare import prepare
from skipnets.training.progress_lines import end_text
from skipnets.training.rate_finder import with_found_rate
from skipnets.training.run import Run, begin, claim, write_config
from skipnets.training.scores import headline_scores
from skipnets.training.search_time import copies_within
from skipnets.training.speed import device_count
from skipnets.training.supplied import Supplied

_HEADERS_READ = 5000

AnyOutOfFold = OutOfFold | LabelsOutOfFold | NumbersOutOfFold
TrainOn = Callable[[Run, TrainConfig, ImageDataset], Run]
"""Trains a new run on a dataset that is already split."""
Resume = Callable[[Run, int | None], Run]
"""Goes on with a fold's run, up to another number of epochs or None."""


def train_folds(
    config: TrainConfig,
    *,
    started: float,
    train_on: TrainOn,
    say: Callable[[str], None],
    supplied: Supplied | None = None,
) -> Run:
    """Train a model for each fold, evaluate each on the images it has not seen, and join them.

    Args:
        config: With `folds`.
        started: When the run's time began, on `budget.clock`.
        train_on: Trains a fold.
        say: Shows a line.
        supplied: What a program hands over beside the configuration.

    Raises:
        UserError: Wrong input. Where that shows before training, nothing has been written.
    """
    assert config.folds is not None
    supplied = supplied or Supplied()
    _check_options(config)
    run = claim(config.out)
    dataset = find_with_own_splits(
        config.data,
        download=config.download,
        duplicates=config.duplicates,
        options=config.data_options,
        channels=config.channels,
        copies_within=copies_within(config),
    )
    if config.splits is None:
        folds = deal_out_folds(dataset, config.folds, config.seed, config.data)
    else:
        folds = read_folds(dataset, config.splits, config.folds, missing=config.missing)
    first, *_ = list(_datasets(folds, config))  # all of them, so that what is wrong shows before training
    # Given epochs, as in the file of a run that is repeated, go before the time that they came from.
    seconds = None if config.time is None or config.epochs is not None else parse_duration(config.time)
    of_first = config if seconds is None else _within(config, seconds / config.folds)
    remarks = Remarks(first)
    # Made before `prepare` adds to the dataset's notes, and shown once it has found nothing wrong.
    data = f"{survey(folds.dataset, config.data, most=_HEADERS_READ)}\n{_line(first, folds)}"
    of_first = _fold_config(of_first, run.fold(1), 1)
    prepared = prepare(of_first, first, supplied=supplied.for_run(), on_checked=functools.partial(say, data))
    folds = dataclasses.replace(
        folds, dataset=dataclasses.replace(folds.dataset, contents=contents(folds.dataset))
    )
    say(f"in each fold:\n{announcement(prepared, first, remarks=remarks.new())}")
    prepared, search = with_found_rate(prepared, first, say, supplied)
    begin(run, _resolved(config, prepared.config, len(first.split("train"))), folds.write)
    if search is not None:
        search.draw(run.rates)
    ends = None
    if seconds is not None:
        predicted = int((folds.numbers == 0).sum()) * folds.count  # by the ensemble, at last
        ends = started + seconds
        ends -= budget.finish_seconds(
            predicted, prepared.seconds_per_image or 0.0, to_read=prepared.reading.seconds_per_image
        )
    return _train_missing(
        run,
        folds,
        ends=ends,
        warmup=config.warmup,
        train_on=train_on,
        resume=None,
        say=say,
        supplied=supplied,
    )


def resume_folds(
    run: Run,
    *,
    missing: str | None,
    epochs: int | None,
    train_on: TrainOn,
    resume: Resume,
    say: Callable[[str], None],
    supplied: Supplied | None = None,
) -> Run:
    """Go on with the fold in which a run was interrupted, or with all folds up to more epochs.

    Args:
        run: With `folds` in its configuration, in a locked folder.
        missing: "skip" goes on without images that are no longer there; None does as the run was started.
        epochs: As many as this in each fold; None does as the run was started.
        train_on: Trains a fold.
        resume: Goes on with a fold.
        say: Shows a line.
        supplied: What a program hands over beside the configuration.

    Raises:
        UserError: The data are no longer there or are others; then nothing has been changed.
    """
    config = run.config if epochs is None else extended_config(run, epochs)
    assert config.folds is not None
    _check_options(config)
    options = config.data_options
    dataset = find_with_own_splits(
        config.data,
        download=config.download,
        # Those that stay together in a fold's splits; what was dropped is not in splits.csv.
        duplicates="ignore" if config.duplicates == "drop" else config.duplicates,
        options=options,
        copies_within=copies_within(config),
    )
    folds = read_folds(dataset, run.splits, config.folds, missing=missing or options.missing)
    check_images(run.splits, dataset)
    if epochs is not None:
        extend(run, epochs, say)
    return _train_missing(
        run, folds, train_on=train_on, resume=resume, say=say, supplied=supplied or Supplied()
    )


def _check_options(config: TrainConfig) -> None:
    if (count := device_count(config.devices, config.accelerator)) != 1:
        raise UserError(f"devices: folds are trained one after another on one device, not on {count}")


def _within(config: TrainConfig, seconds: float) -> TrainConfig:
    """The configuration with as many epochs as fit into a time."""
    return dataclasses.replace(config, time=f"{max(seconds, 1):.1f}s", epochs=None, epoch_plan=())


def _resolved(config: TrainConfig, of_fold: TrainConfig, train_images: int) -> TrainConfig:
    """What was resolved for the first fold holds for all; what is the run's own stays."""
    values = {name: getattr(of_fold, name) for name in FIELDS}
    values |= {
        name: getattr(config, name) for name in ("folds", "out", "seed", "splits", "fractions", "time")
    }
    return TrainConfig(**_without_whole_passes(values, train_images))


def _with_epochs_of_first(run: Run, train_images: int) -> TrainConfig:
    """The configuration with the epochs that fitted into the first fold's time; run.yaml is written anew.

    Args:
        run: Whose first fold is complete.
        train_images: Number of the first fold's training images.
    """
    first, config = run.fold(1).config, run.config
    values = {name: getattr(first, name) for name in ("epochs", "epoch_images", "epoch_plan", "warmup")}
    changed = dataclasses.replace(config, **_without_whole_passes(values, train_images))
    if changed != config:
        write_config(run, changed)
    return changed


def _without_whole_passes(values: dict[str, Any], train_images: int) -> dict[str, Any]:
    """The values without `epoch_images` where these are all, which are a few more or less in other folds."""
    return values | {"epoch_images": None} if values["epoch_images"] == train_images else values


def _fold_config(config: TrainConfig, fold: Run, number: int) -> TrainConfig:
    """The configuration of a fold, which repeats that fold alone."""
    # Other initial weights in each fold make the ensemble's members differ more.
    seed = (config.seed + number - 1) % 2**31
    return dataclasses.replace(config, folds=None, out=fold.folder, splits=fold.splits, seed=seed)


def _datasets(folds: Folds, config: TrainConfig) -> Iterator[ImageDataset]:
    """The split images of each fold; train and val share the rest in the ratio of the fractions."""
    shares = find_shares(config.fractions or "auto")
    shares = shares.of(name for name in shares.fractions if name != "test")
    if "val" not in shares.fractions:
        raise UserError(
            f"fractions={config.fractions}: must leave {INPUTS[folds.dataset.dims]} to choose the best "
            "epoch on (val)"
        )
    for number in range(1, folds.count + 1):
        yield folds.fold(number, shares, config.seed, config.data)


def _line(first: ImageDataset, folds: Folds) -> str:
    counts = [int((first.splits == name).sum()) for name in ("train", "val", "test")]
    test = int((folds.numbers == 0).sum())
    return worded(
        f"{folds.count} folds, each of about {counts[0]:,} images to train on, {counts[1]:,} to choose the "
        f"best epoch on and {counts[2]:,} held out to evaluate"
        + (f"; {test:,} test images are left to the ensemble" if test else ""),
        first.dims,
    )


def _train_missing(
    run: Run,
    folds: Folds,
    *,
    ends: float | None = None,
    warmup: float | None = None,
    train_on: TrainOn,
    resume: Resume | None,
    say: Callable[[str], None],
    supplied: Supplied,
) -> Run:
    """Train the folds that are not complete, and join all.

    Args:
        run: Of all folds, with its resolved configuration.
        folds: Which images each holds out.
        ends: The time on `budget.clock` at which the last fold should have ended. The first gets an equal
            share of it, which decides its epochs; the others have as many, whatever the clock says, so that
            all folds can be compared. None: all have the epochs of the configuration.
        warmup: With `ends`, as the user gave it; None lets the recipe choose it for the epochs of the first.
        train_on: Trains a fold.
        resume: Goes on with a fold; None where there is none to go on with.
        say: Shows a line.
        supplied: What a program hands over beside the configuration.
    """
    config = run.config  # resolved, so that all folds have one network and one preprocessing
    train_images = 0
    for number, dataset in enumerate(_datasets(folds, config), start=1):
        fold = run.fold(number)
        if number == 1:
            train_images = len(dataset.split("train"))
        elif number == 2 and config.time is not None:
            config = _with_epochs_of_first(run, train_images)
        if resume is not None and fold.config_file.is_file() and fold.splits.is_file():
            # Until the second fold begins, run.yaml has the epochs that were planned before the first.
            longer = config.time is None and config.epochs != fold.config.epochs
            if longer or not fold.evaluation.exists():
                say(f"fold {number} of {folds.count}, resumed")
                resume(fold, config.epochs if longer else None)
            continue
        say(f"fold {number} of {folds.count}")
        if fold.folder.exists():  # begun, but interrupted before there was anything to go on with
            shutil.rmtree(fold.folder)
        of_fold = _fold_config(config, fold, number)
        started = budget.clock()
        if ends is not None and number == 1:
            of_fold = dataclasses.replace(of_fold, warmup=warmup)
            of_fold = _within(of_fold, (ends - started) / folds.count)
        train_on(fold, of_fold, dataset)
        if ends is not None and number == 1:
            left = (folds.count - 1) * (budget.clock() - started)
            say(
                f"the other folds train as many epochs, {fold.config.epochs}, so that all can be compared; "
                f"the last {end_text(left)}"
            )
    with resumable(run):
        join_folds(run, folds, say, supplied.module)
    return run


def join_folds(run: Run, folds: Folds, say: Callable[[str], None], module: nn.Module | None = None) -> None:
    """Write the ensemble, its evaluation on the test split, and at last the out-of-fold predictions.

    Args:
        run: All of whose folds are complete.
        folds: Which images each held out.
        say: Shows a line.
        module: The network, where that is no part of this package and no import makes it.
    """
    config = run.config
    dataset = folds.dataset
    members = [
        load(fold.model, runtime="torch", device="cpu", model=copy.deepcopy(module)) for fold in run.folds
    ]
    evaluation = _out_of_fold(run, dataset, members[0].classes)
    ensemble = Classifier.from_members(members, provenance=_provenance(config, folds, evaluation))
    if isinstance(evaluation, LabelsOutOfFold):
        ensemble.thresholds = evaluation.thresholds
        ensemble.provenance["thresholds"] = {
            "rule": str(ThresholdRule.parse(config.threshold or "f1")),
            "split": evaluation.split,
            "images": len(evaluation.names),
            "undefined": evaluation.undefined,
        }
    ensemble.save(run.model)
    if (folds.numbers == 0).any():
        device = "cpu" if config.accelerator == "cpu" else "auto"
        tested = evaluate(
            load(run.model, device=device, model=module),
            dataset,
            split="test",
            batch_size=config.batch_size or 64,
        )
        tested.save(run.folder / run_folder.TEST)
        ensemble.provenance["scores"] |= headline_scores(tested, "test")
        ensemble.save(run.model)
    else:
        text = "there are no test images apart: the ensemble itself is not evaluated, the folds' models are"
        say(worded(text, dataset.dims))
    evaluation.save(run.folder)


def _out_of_fold(run: Run, dataset: ImageDataset, classes: tuple[str, ...]) -> AnyOutOfFold:
    """The predictions of all folds' models, joined."""
    about: dict[str, Any] = {"classifier": str(run.folder), "data": run.config.data}
    groups = dataset.groups
    group_of = None if groups is None else dict(zip(dataset.names, groups.tolist(), strict=True))
    folds = list(enumerate(run.folds, start=1))
    if dataset.regression:
        return numbers_out_of_fold(
            [NumberFoldResult.read(fold.folder, number=k, best_epoch=fold.best_epoch) for k, fold in folds],
            targets=classes,
            groups=group_of,
            **about,
        )
    if dataset.multi_label:
        return labels_out_of_fold(
            [LabelFoldResult.read(fold.folder, number=k, best_epoch=fold.best_epoch) for k, fold in folds],
            classes=classes,
            groups=group_of,
            rule=ThresholdRule.parse(run.config.threshold or "f1"),
            **about,
        )
    return out_of_fold(
        [_result(fold, k) for k, fold in folds], classes=classes, groups=group_of or {}, **about
    )


def _result(fold: Run, number: int) -> FoldResult:
    """What a fold's run wrote."""
    metrics = fold.scores
    classes = [row["name"] for row in metrics["classes"]]
    names, labels, logits, _ = read_predictions(fold.folder / run_folder.PREDICTIONS, classes)
    return FoldResult(
        number=number, best_epoch=fold.best_epoch, metrics=metrics, names=names, labels=labels, logits=logits
    )


def _provenance(config: TrainConfig, folds: Folds, evaluation: AnyOutOfFold) -> dict[str, Any]:
    options = config.data_options.to_dict()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": config.data,
        **({"data_options": options} if options else {}),
        "images": {
            "train": int(np.count_nonzero(folds.numbers)),
            "val": 0,
            "test": int((folds.numbers == 0).sum()),
        },
        "folds": folds.count,
        "weights": config.weights,
        "recipe": config.recipe,
        "epochs": config.epochs,
        "seed": config.seed,
        "scores": headline_scores(evaluation, "out_of_fold"),
    }
