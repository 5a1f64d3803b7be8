"""A whole training run: from a configuration to a run folder with an evaluated classifier in it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import Logger
from torchmetrics import Metric

from skipnets.axes import INPUTS, worded
from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import Missing
from skipnets.data.sources import find_dataset, open_dataset
from skipnets.data.splitting import repeat_splits
from skipnets.data.survey import survey
from skipnets.duration import format_duration, parse_duration
from skipnets.errors import UserError
from skipnets.files import remove_orphans
from skipnets.terminal import printable_lines
from skipnets.training import budget
from skipnets.training.announcement import Remarks, announcement
from skipnets.training.batches import FirstBatch
from skipnets.training.best_epoch import Resolution
from skipnets.training.budget import TimeBudget
from skipnets.training.callbacks import Averaging, EpochBar, EpochSeeds, LiveCurves, Patience, Record
from skipnets.training.checkpoints import StepCheckpoints, newest_checkpoint, shares_of
from skipnets.training.checks import check_files, check_images
from skipnets.training.components import with_components
from skipnets.training.config import TrainConfig
from skipnets.training.data import ImageDataModule
from skipnets.training.divergence import Divergence
from skipnets.training.extending import extend, extended_config
from skipnets.training.final_metrics import log_final_metrics
from skipnets.training.fitting import fit, make_trainer, on_gpu
from skipnets.training.folds import resume_folds, train_folds
from skipnets.training.head import fit_head_to
from skipnets.training.interruption import resumable
from skipnets.training.locking import locked
from skipnets.training.loggers import check_loggers, logged, make_loggers
from skipnets.training.notebook_progress import NotebookProgress, in_notebook
from skipnets.training.outcome import draw_run_curves, finish, save_best
from skipnets.training.prepare import Prepared, prepare
from skipnets.training.progress_lines import ExpectedEnd, ProgressLines
from skipnets.training.quiet import QuietProcesses, quiet_lightning
from skipnets.training.rate_finder import RatePlot, with_found_rate
from skipnets.training.regression import scaled_dataset, target_scales
from skipnets.training.run import Run, begin, claim, is_helper, reopen, write_config
from skipnets.training.search_time import copies_within
from skipnets.training.speed import check_accelerator
from skipnets.training.supplied import Model, Supplied, check_supplied, several
from skipnets.training.supplied_data import Images, as_dataset, given_dataset
from skipnets.training.task import Loss
from skipnets.training.tasks import make_task
from skipnets.trust import Trust, trusting

# How many headers the table of the data is made from, before training.
_HEADERS_READ = 5000


def train(
    config: TrainConfig,
    *,
    model: Model | None = None,
    architecture: Mapping[str, Any] | None = None,
    dataset: Images | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    logger: Logger | Sequence[Logger] = (),
    trust: Trust = None,
    started: float | None = None,
) -> Run:
    """Train a classifier, choose its best epoch on the validation split, and evaluate that on the test split.

    Args:
        config: What to train, on what, how, and where to.
        model: Another network than the configuration's, (N, C, H, W) → logits (N, K), or of signals (N, C, L)
            or volumes (N, C, D, H, W): a module, which then
            has the best epoch's weights, or what makes one, such as `functools.partial(MyNet, width=8)`,
            which is given `num_classes` and `in_chans` if it takes them. The model file records the import
            and the arguments of the latter, so that
            `skipnets.load(path, trust="package.module:MyNet")` makes it again.
        architecture: What a model file records of a module: `{"import": "package.module:MyNet", "arguments":
            {"width": 8}}`. Without it, `skipnets.load(path, model=…)` needs such a module.
        dataset: Images instead of those at `config.data`, which then is only their name: an `ImageDataset`, a
            sequence of (image, label) such as torchvision's data sets, or several by split: `{"train": …,
            "test": …}`. Signals and volumes, too; a network with `dims` of 1 or 3 takes them.
        callbacks: Lightning's, beside the run's own.
        loss: Another training loss, of logits (N, K) and labels (N,), or of shares (N, K) with MixUp and
            CutMix. With several labels an image, of logits and labels (N, K) of 1 and 0; with numbers, of
            outputs and targets (N, K), both in standard deviations from the mean. Unknown ones are NaN, and
            left out for modules with PyTorch's `reduction`. The validation loss stays the negative
            log-likelihood, with numbers the mean squared error.
        metrics: Further metrics of the validation split by name, from torchmetrics, after each epoch, written
            to metrics.csv and to loggers as `val_NAME`: measured from logits (N, K) and labels (N,); with
            several labels an image, from probabilities and labels (N, K), -1 where unknown (`ignore_index`);
            with numbers, from these in their units, (N, K), or (N,) of one. In the end `test_NAME` of the
            test split, in the model file and in loggers.
        logger: Lightning's, beside the run's own.
        trust: The imports that may run where the configuration's model or components are such
            (`package.module:Class`).
        started: When the run's time began, on `time.perf_counter`. Default: now.

    Returns:
        The run folder. In the other processes of a distributed training, too: they return when training ends.

    Raises:
        UserError: Wrong input. Where that shows before training, nothing has been written.
        TrainingInterrupted: Ctrl-C.
    """
    started = budget.clock() if started is None else started
    supplied = _supplied(model, architecture, dataset, callbacks, loss, metrics, logger)
    with trusting(trust):
        return _train_new(config, with_components(config, supplied), started)


def _supplied(
    model: Model | None,
    architecture: Mapping[str, Any] | None,
    dataset: Images | None,
    callbacks: Callback | Sequence[Callback],
    loss: Loss | None,
    metrics: Mapping[str, Metric] | None,
    logger: Logger | Sequence[Logger],
) -> Supplied:
    return Supplied(
        model=model,
        architecture=architecture,
        dataset=dataset,
        callbacks=several(callbacks),
        loss=loss,
        metrics={} if metrics is None else metrics,
        loggers=several(logger),
    )


def _train_new(config: TrainConfig, supplied: Supplied, started: float) -> Run:
    """See `train`."""
    check_supplied(config, supplied)
    check_loggers(config.logger)
    check_accelerator(config.accelerator)
    images = supplied.dataset
    if config.folds is not None:
        if images is not None:
            raise UserError("dataset: must be given without folds")
        claim(config.out)
        with _alone_in(config.out):
            run = train_folds(
                config,
                started=started,
                train_on=functools.partial(train_on, supplied=supplied),
                say=_say,
                supplied=supplied,
            )
        _tell_overrun(config, started)
        return run
    run = Run(config.out) if is_helper() else claim(config.out)
    dims = supplied.dims(config)
    dataset = training_dataset(config) if images is None else given_dataset(config, images, dims=dims)
    remarks = Remarks(dataset)
    # Made before `prepare` adds to the dataset's notes, and shown once it has found nothing wrong.
    data = None if is_helper() else str(survey(dataset, config.data, most=_HEADERS_READ))
    say_data = None if data is None else functools.partial(_say, data)
    prepared = prepare(config, dataset, started=started, supplied=supplied, on_checked=say_data)
    # Refuses a size that is too small for the model, before anything is written.
    Classifier.from_model(prepared.model, classes=dataset.classes, preprocessing=prepared.preprocessing)
    if not is_helper():
        _say(announcement(prepared, dataset, remarks=remarks.new()))
    prepared, search = with_found_rate(prepared, dataset, _say, supplied)
    if search is not None:
        callbacks = [*supplied.callbacks, RatePlot(search, run.rates)]
        supplied = dataclasses.replace(supplied, callbacks=callbacks)
    run = _begin(run, prepared, dataset, supplied)
    if not is_helper():
        _tell_overrun(config, started)
    return run


def _tell_overrun(config: TrainConfig, started: float) -> None:
    """Say by how much a run took longer than it was given."""
    if config.time is None:
        return
    took, asked = budget.clock() - started, parse_duration(config.time)
    if took > 1.15 * asked:
        _say(f"the run took {format_duration(took)} instead of {format_duration(asked)}")


def train_on(
    run: Run,
    config: TrainConfig,
    dataset: ImageDataset,
    *,
    callbacks: Sequence[Callback] = (),
    supplied: Supplied | None = None,
) -> Run:
    """Train a new run on a dataset that is already split.

    Args:
        run: Where; nothing is there yet.
        config: As for `train`; how the dataset is found is for the record alone.
        dataset: With its splits.
        callbacks: Lightning's, beside the run's own.
        supplied: What a program hands over; it is copied.
    """
    supplied = with_components(config, supplied or Supplied()).for_run(callbacks)
    return _begin(run, prepare(config, dataset, supplied=supplied), dataset, supplied)


def resume(
    folder: str | Path,
    *,
    missing: Missing | None = None,
    epochs: int | None = None,
    devices: int | str | None = None,
    model: Model | None = None,
    architecture: Mapping[str, Any] | None = None,
    dataset: Images | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    logger: Logger | Sequence[Logger] = (),
    trust: Trust = None,
) -> Run:
    """Go on with a training that was interrupted, from its last checkpoint.

    The result is the one that the training would have had without the interruption, on the same machine.
    With fewer processes than before, every step sees the same images, augmented in the same way; what differs
    is the order in which gradients are summed, the random draws within the network and of mixed images, and
    the running statistics of batch norms, which see every process's batches.

    Args:
        folder: The run folder.
        missing: "skip" goes on without images that are no longer there; None does as the run was started.
        epochs: Train up to this many epochs, more than the run was started with, also if it is complete; the
            rate goes on as in the middle of a schedule over all of them. None does as the run was started.
        devices: How many devices, or which; their number must divide that of the processes that the run was
            started with. None does as the run was started. Under torchrun, that decides.
        model: As the run was started with; see `train`.
        architecture: As the run was started with.
        dataset: As the run was started with.
        callbacks: As the run was started with.
        loss: As the run was started with.
        metrics: As the run was started with.
        logger: As the run was started with.
        trust: The imports that may run where the run's network or components are such.

    Raises:
        UserError: It is none, its run is complete, its files are damaged, or the data are no longer there or
            are others.
        TrainingInterrupted: Ctrl-C.
    """
    supplied = _supplied(model, architecture, dataset, callbacks, loss, metrics, logger)
    with trusting(trust):
        return _resume(Path(folder), supplied, missing=missing, epochs=epochs, devices=devices)


def _resume(
    folder: Path,
    supplied: Supplied,
    *,
    missing: Missing | None,
    epochs: int | None,
    devices: int | str | None = None,
) -> Run:
    """See `resume`."""
    run = reopen(folder, complete=epochs is not None) if not is_helper() else Run(folder)
    check_files(run)
    supplied = with_components(run.config, supplied)
    check_supplied(run.config, supplied)
    with _alone_in(run.folder):
        config = run.config if epochs is None else extended_config(run, epochs)
        if config.folds is not None:
            if devices is not None:
                raise UserError(f"devices={devices}: must not be given for a run with folds")
            return resume_folds(
                run,
                missing=missing,
                epochs=epochs,
                train_on=functools.partial(train_on, supplied=supplied),
                resume=lambda fold, epochs: _resume(
                    fold.folder, supplied.for_run(), missing=missing, epochs=epochs
                ),
                say=_say,
                supplied=supplied,
            )
        if devices is not None:
            config = dataclasses.replace(config, devices=devices)
        return _resume_locked(run, config, supplied, missing=missing, epochs=epochs)


def _resume_locked(
    run: Run, config: TrainConfig, supplied: Supplied, *, missing: Missing | None, epochs: int | None
) -> Run:
    """Go on with a run without folds in a locked folder, which is changed only when all has been checked."""
    check_accelerator(config.accelerator)
    options = config.data_options
    images = supplied.dataset
    if images is not None:
        samples = as_dataset(images, dims=supplied.dims(config))
        dataset = repeat_splits(samples, run.splits, missing=missing or options.missing)
    else:
        dataset = open_dataset(
            config.data,
            splits=run.splits,
            seed=config.seed,
            download=config.download,
            options=options if missing is None else dataclasses.replace(options, missing=missing),
        )
    check_images(run.splits, dataset)
    prepared = prepare(config, dataset, load_weights=not run.checkpoint.exists(), supplied=supplied)
    before = run.best_epoch if epochs is not None and run.model.exists() else None
    if epochs is not None and not is_helper():
        extend(run, epochs, _say)
    run = _train_locked(run, prepared, dataset, fresh=False, supplied=supplied)
    if before is not None and run.best_epoch == before and not is_helper():
        _say(f"no better epoch than epoch {before}: the model is unchanged")
    return run


def _begin(run: Run, prepared: Prepared, dataset: ImageDataset, supplied: Supplied) -> Run:
    """Train a new run in a folder that no other training writes to meanwhile; see `_train_locked`."""
    with _alone_in(run.folder):
        if not is_helper():
            claim(run.folder)  # again: another training may have been faster
        return _train_locked(run, prepared, dataset, fresh=True, supplied=supplied)


def _train_locked(
    run: Run, prepared: Prepared, dataset: ImageDataset, *, fresh: bool, supplied: Supplied
) -> Run:
    """Everything from the first epoch that is missing to the evaluation.

    Args:
        run: Where; its folder is locked.
        prepared: With what.
        dataset: On what.
        fresh: Whether the run folder is yet to be begun.
        supplied: What a program handed over beside the configuration.
    """
    if not is_helper():
        for folder in (run.folder, run.checkpoint.parent):
            remove_orphans(folder, in_use=False)
    config, model = prepared.config, prepared.model
    train_images, val_images = dataset.split("train"), dataset.split("val")
    scales = target_scales(config, train_images) if dataset.regression else None
    task = make_task(prepared, supplied, train_images)
    if scales is not None:
        train_images, val_images = (scaled_dataset(each, scales) for each in (train_images, val_images))
    if config.fit_head and not run.checkpoint.exists():
        fit_head_to(train_images, task, prepared)

    average = Averaging(config.ema) if config.ema else None
    counts = {name: int((dataset.splits == name).sum()) for name in ("train", "val", "test")}
    save = functools.partial(save_best, run, config, prepared.preprocessing, dataset.classes, scales, counts)
    record = Record(
        run,
        best_by=config.best_by,
        resolution=Resolution.of(val_images.labels, config.best_by),
        epochs=config.epochs,
        average=average,
        save=save,
        say=_say,
        lines=not in_notebook(),
    )
    to_read = prepared.reading.seconds_per_image
    end = ExpectedEnd(test=counts["test"], batch_size=config.batch_size, to_read=to_read)
    callbacks: list[Callback] = [
        QuietProcesses(),
        EpochSeeds(config.seed),
        FirstBatch(run.batches, dataset.classes, scales),
        Divergence(run),
        end,
        record,
        LiveCurves(record, functools.partial(draw_run_curves, run, config)),
    ]
    own_loggers = make_loggers(run, config)
    loggers = [*own_loggers, *supplied.loggers]
    if loggers:
        callbacks.append(LearningRateMonitor("epoch"))
    if average is not None:
        callbacks.insert(0, average)
    if prepared.training_ends is not None and fresh:
        callbacks.append(
            TimeBudget(
                config,
                ends=prepared.training_ends,
                change_plan=task.change_plan,
                record=functools.partial(write_config, run),
                say=_say,
            )
        )
    steps = StepCheckpoints(run, config.checkpoint_minutes, seed=config.seed)
    callbacks.append(steps)
    if config.patience:
        callbacks.append(Patience(config.best_by, config.patience))
    with quiet_lightning():
        callbacks.append(_progress(end, record))
        trainer = make_trainer(run, config, [*callbacks, *supplied.callbacks], loggers)
        if trainer.world_size > counts["val"]:
            raise UserError(
                f"devices={trainer.world_size}: must be at most {counts['val']}, the number of validation "
                f"{INPUTS[dataset.dims]}, as each process takes a share of them"
            )
        checkpoint = newest_checkpoint(run)
        steps.shares = shares_of(checkpoint, trainer.world_size)
        if (each := steps.shares // trainer.world_size) > 1:
            trainer.accumulate_grad_batches = config.accumulate * each
            if not is_helper():
                _say(
                    f"the run was started with {steps.shares} processes: each of {trainer.world_size} takes "
                    f"the batches of {each}, so that every step sees the same {INPUTS[dataset.dims]} as "
                    "before"
                )
        data = ImageDataModule(train_images, val_images, prepared.preprocessing, config, shares=steps.shares)
        with contextlib.ExitStack() as stack:
            if not is_helper():
                others = supplied.loggers if fresh else ()  # a resumed one may go on in its run
                stack.enter_context(logged(own_loggers, config, supplied=others))
                if fresh:  # once the services have answered
                    begin(run, config, dataset.write_splits)
            with resumable(run), on_gpu(config.precision):
                fit(trainer, task, data, run, checkpoint)
            if trainer.global_rank == 0:
                with resumable(run, evaluating=True):
                    tested = finish(run, config, dataset, model, supplied.metrics, _say)
                    log_final_metrics(loggers, tested, step=trainer.global_step, say=_say)
    return run


def _progress(end: ExpectedEnd, record: Record) -> Callback:
    """What shows how far the training is: in a notebook, on a terminal, in a log file."""
    if in_notebook():
        return NotebookProgress(end, record.epochs_so_far)
    return EpochBar(end) if rich.get_console().is_terminal else ProgressLines(end, _say)


def training_dataset(config: TrainConfig) -> ImageDataset:
    """The images of a run, with its splits.

    Raises:
        UserError: The data are wrong, or there are none to learn from or to choose the best epoch on.
    """
    dataset = find_dataset(
        config.data,
        seed=config.seed,
        fractions=config.fractions or "auto",
        splits=config.splits,
        download=config.download,
        duplicates=config.duplicates,
        options=config.data_options,
        channels=config.channels,
        copies_within=copies_within(config),
    )
    for name, purpose in (("train", "learn from"), ("val", "choose the best epoch on")):
        if not len(dataset.split(name)):
            nothing = worded("there are no images", dataset.dims)
            raise UserError(f"fractions: {nothing} to {purpose} (the split {name} is empty)")
    return dataset


def _alone_in(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a run folder; the processes that train together hold one."""
    return contextlib.nullcontext() if is_helper() else locked(folder)


def _say(line: str) -> None:
    """Show a line on standard error, above the progress bar if there is one."""
    console = rich.get_console()
    if not console.stderr:
        console = rich.console.Console(stderr=True)
    console.print(printable_lines(line), highlight=False, markup=False, soft_wrap=True)
