"""Find better settings for a training by many short ones, judged on the validation split alone.

runs/NAME/
  base.yaml      the configuration that every trial changes, with the time of a trial, and what the settings
                 without tuning have of size, weights and precision
  splits.csv     the same for all trials; the test split is never read
  study.db       Optuna's database, from which a tuning is resumed, with what is varied
  trials.csv     a line a trial
  trial-0001/    the run folder of a trial, without its checkpoints; its output is in logs/
  run.yaml       the best settings, for `skipnets train --config`
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from skipnets import run_folder
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.sources import open_dataset
from skipnets.data.survey import survey
from skipnets.duration import format_duration, parse_duration
from skipnets.errors import UserError, check_at_least_1, one_line
from skipnets.files import atomic_path
from skipnets.machine import usable_cores
from skipnets.tables import Display, make_table, properties_table
from skipnets.training import budget
from skipnets.training.announcement import Remarks
from skipnets.training.best_epoch import MONITORED
from skipnets.training.components import with_components
from skipnets.training.config import BestBy, ResolvedConfig, TrainConfig, config_to_yaml, read_config
from skipnets.training.early_checks import check_tuning_folder
from skipnets.training.interruption import announced
from skipnets.training.locking import locked
from skipnets.training.prepare import prepare
from skipnets.training.run import Run
from skipnets.training.speed import device_count
from skipnets.training.supplied import Supplied
from skipnets.training.task import ClassificationTask
from skipnets.training.trainer import train_on, training_dataset
from skipnets.training.tuning.space import search_space
from skipnets.training.tuning.trials import (
    BASE,
    Pruner,
    TrialRecord,
    best_of,
    load_study,
    open_study,
    plan_trials,
    planned_space,
    read_trials,
    write_table,
)
from skipnets.trust import Trust, import_trusted, is_import, trusted_imports, trusting

if TYPE_CHECKING:
    import optuna
    from rich.table import Table

__all__ = ["Tuning", "resume_tuning", "tune"]

# Without a time for each trial, so many fit into the time, if a trial then has enough.
_TRIALS = 25
_LEAST_TRIAL_SECONDS = 20.0
# Where in a training, in tenths, trials are compared with one another.
_POINTS = 10
_HEADERS_READ = 5000
_SHOWN = 10  # trials in the printed table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuning(Display):
    """The folder of a tuning; its properties are read from its files.

    Attributes:
        folder: `runs/NAME`.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def base(self) -> TrainConfig:
        """The configuration that every trial changes."""
        return read_config(self.folder / BASE)

    @property
    def config_file(self) -> Path:
        """The best settings, a YAML file."""
        return self.folder / run_folder.CONFIG

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials that were begun."""
        return read_trials(load_study(self.folder))

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial; None before there is one."""
        return best_of(self.trials, minimize=self.minimize)

    @property
    def metric(self) -> BestBy:
        """The metric on the validation split by which trials are compared."""
        return _metric(self.base)

    @property
    def minimize(self) -> bool:
        """Whether less of it is better."""
        return MONITORED[self.metric][1] == "min"

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        trials = self.trials
        best, first = self.best, trials[0] if trials else None
        shown = sorted(
            (trial for trial in trials if trial.value is not None),
            key=lambda trial: trial.value or 0.0,
            reverse=not self.minimize,
        )[:_SHOWN]
        options = list(dict.fromkeys(name for trial in trials for name in trial.values))
        columns: dict[str, Any] = {"trial": "right", "": "left", f"val {self.metric}": "right"}
        table = make_table(
            columns | {option.replace("_", " "): "right" for option in options},
            [
                [
                    str(each.number),
                    "" if each.state == "complete" else each.state,
                    _number(each.value),
                    *(_short(each.values.get(o)) for o in options),
                ]
                for each in shown
            ],
        )
        counts = {
            state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")
        }
        rows = {
            "tuning": str(self.folder),
            "trials": f"{len(trials)}: "
            + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
        }
        if best is not None and first is not None:
            rows[f"best val {self.metric}"] = (
                f"{_number(best.value)} (trial {best.number}); "
                f"the default settings have {_number(first.value)}"
            )
            rows["settings"] = str(self.config_file)
            rows["next"] = f"skipnets train --config {self.config_file}{_trust_option(self.base)}"
        return [table, properties_table(rows)]


def tune(
    config: TrainConfig,
    *,
    time: str | float = "1h",
    trial_time: str | float | None = None,
    trials: int | None = None,
    processes: int = 1,
    pruner: Pruner = "median",
    trust: Trust = None,
) -> Tuning:
    """Train with many settings for a short time each, and find those that are best on the validation split.

    Learning rate, weight decay, batch size, augmentation and network are varied (what the configuration sets
    is not), by Optuna's TPE sampler; the first trial has the settings of a training without tuning, which is
    prepared once: size, initial weights and precision of all trials are its. Every trial has the same time,
    so a larger network must make up for its slowness. The test split is never read.

    Args:
        config: What all trials have in common; `out` is the folder of the tuning.
        time: For all trials together, such as "1h" or a number of seconds.
        trial_time: For each trial. Default: a 25th, at least 20 seconds; not with `config.epochs`.
        trials: The most trials. Default: as many as the time allows.
        processes: Trials at the same time, which share the processor's cores.
        pruner: What stops hopeless trials: "median", those worse than half of the others at the same point,
            or "halving", successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).
        trust: The import that may run where the configuration's model is one (`package.module:Class`), or
            several.

    Raises:
        UserError: Wrong input. Where that shows before the first trial, nothing has been written.
    """
    with trusting(trust):
        return _tune(config, time, trial_time, trials=trials, processes=processes, pruner=pruner)


def _tune(
    config: TrainConfig,
    time: str | float,
    trial_time: str | float | None,
    *,
    trials: int | None,
    processes: int,
    pruner: Pruner,
) -> Tuning:
    """See `tune`."""
    check_at_least_1(trials=trials, processes=processes)
    if config.folds is not None:
        raise UserError(f"folds={config.folds}: must not be given, trials are judged on one validation split")
    if config.find_lr:
        raise UserError("find_lr: must not be given, the rate is tuned")
    if config.time is not None:
        raise UserError(
            f"time={config.time!r}: must not be in the configuration; give the time of a trial as trial_time"
        )
    if config.supplied:
        raise UserError(
            f"supplied={', '.join(config.supplied)}: the configuration is of a run to which a program gave "
            "that, which tune cannot repeat"
        )
    _check_one_device(config)
    started, seconds = budget.clock(), parse_duration(time)
    folder = config.out
    check_tuning_folder(folder)
    supplied = _components(config)
    each = None
    if config.epochs is None:
        each = max(seconds / _TRIALS, _LEAST_TRIAL_SECONDS) if trial_time is None else None
        each = parse_duration(trial_time, option="trial_time") if each is None else each  # type: ignore[arg-type]
    elif trial_time is not None:
        raise UserError(f"trial_time={trial_time}: must be given without epochs={config.epochs}")
    if trial_time is None and each is not None and seconds < _TRIALS * _LEAST_TRIAL_SECONDS:
        fit = counted(max(int(seconds / each), 1), "trial")
        _say(f"a trial takes at least {each:.0f} s: {fit} in {format_duration(seconds)}")
    dataset = training_dataset(config)
    # Losses of different loss functions cannot be compared, and errors say more.
    by_error = dataset.regression and config.best_by is None
    base = dataclasses.replace(
        config,
        best_by="mae" if by_error else config.best_by,
        time=None if each is None else f"{each:.0f}s",
        splits=folder / run_folder.SPLITS,
    )
    remarks = Remarks(dataset)
    # Made before `prepare` adds to the dataset's notes, and shown once it has found nothing wrong.
    say_data = functools.partial(_say, str(survey(dataset, config.data, most=_HEADERS_READ)))
    without_test = _without_test(dataset)
    default = prepare(base, without_test, supplied=supplied.for_run(), on_checked=say_data).config
    for name, text in remarks.new():
        _say(f"{name}: {text}")
    space = search_space(base, default, train_images=len(dataset.split("train")))
    base = _with_fixed(base, default, varied=space)
    check_tuning_folder(folder)  # again: another tuning may have been faster
    with locked(folder):
        dataset.write_splits(folder / run_folder.SPLITS)
        _write(folder / BASE, base)
        study = open_study(folder, minimize=Tuning(folder).minimize)
        plan_trials(study, space, first={name: getattr(default, name) for name in space})
        left = seconds - (budget.clock() - started)
        return _go_on(folder, left, trials=trials, processes=processes, pruner=pruner)


def resume_tuning(
    folder: str | Path,
    *,
    time: str | float = "1h",
    trials: int | None = None,
    processes: int = 1,
    pruner: Pruner = "median",
    trust: Trust = None,
) -> Tuning:
    """Go on with a tuning, after an interruption or for more trials.

    Args:
        folder: Of the tuning.
        time: For the trials from now on.
        trials: The most trials, with those before. Default: as many as the time allows.
        processes: As in `tune`.
        pruner: As in `tune`.
        trust: As in `tune`.

    Raises:
        UserError: The folder is none of a tuning, or another process is tuning in it.
    """
    check_at_least_1(trials=trials, processes=processes)
    folder = Path(folder)
    if not (folder / BASE).is_file():
        raise UserError(f"resume: {folder} is not the folder of a tuning (no {BASE} in it)")
    _check_one_device(Tuning(folder).base)
    with trusting(trust), locked(folder):
        return _go_on(folder, parse_duration(time), trials=trials, processes=processes, pruner=pruner)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a process that runs trials is given.

    Attributes:
        folder: Of the tuning.
        seconds: How long it has.
        trials: The most trials of all processes.
        pruner: What stops trials.
        seed: Of its sampler.
        threads: Of the processor, for each step; None leaves PyTorch's number.
        workers: Processes that read images, where the configuration does not say; None leaves it to a run.
        trust: The imports that may run.
    """

    folder: Path
    seconds: float
    trials: int | None
    pruner: Pruner
    seed: int
    threads: int | None
    workers: int | None
    trust: tuple[str, ...]


def _go_on(folder: Path, seconds: float, *, trials: int | None, processes: int, pruner: Pruner) -> Tuning:
    """Run trials in a locked folder, whose running ones are those of processes that have ended."""
    tuning = Tuning(folder)
    base = tuning.base
    if is_import(base.model):
        import_trusted(base.model)  # what is not trusted fails here, not as a trial
    _components(base)
    study = open_study(folder, minimize=tuning.minimize, pruner=pruner)
    for number in _abandoned(study):
        study.tell(number, state=_state("FAIL"))
    # Several processes share the cores, also for reading images.
    threads = workers = None
    if processes > 1:
        threads, workers = (max(n // processes, 1) for n in (torch.get_num_threads(), usable_cores()))
    before = len(study.get_trials(deepcopy=False))
    jobs = [
        _Job(
            folder=folder,
            seconds=seconds,
            trials=trials,
            pruner=pruner,
            seed=int(np.random.SeedSequence([base.seed, before, number]).generate_state(1)[0]),
            threads=threads,
            workers=workers,
            trust=trusted_imports(),
        )
        for number in range(processes)
    ]
    try:
        again = f"skipnets tune --resume {folder} --time 30m{_trust_option(base)}"
        with announced(lambda: f"interrupted; go on with: {again}"):
            if processes == 1:
                _work(jobs[0])
            else:
                _work_in_processes(jobs)
    except KeyboardInterrupt:
        _finish(tuning)
        raise
    _finish(tuning)
    if tuning.best is None:
        reasons = [trial.reason for trial in tuning.trials if trial.reason]
        raise UserError(
            "time: no trial was completed"
            + (f"; the last failed: {reasons[-1]}" if reasons else "; give more time")
        )
    return tuning


def _check_one_device(config: TrainConfig) -> None:
    """Refuse several devices, for each of which the command would be run again."""
    if (count := device_count(config.devices, config.accelerator)) != 1:
        raise UserError(f"devices: each trial is trained on one device, not on {count}")


def _components(config: TrainConfig) -> Supplied:
    """What the configuration's `components` return; an error where a trial could not take that."""
    supplied = with_components(config, Supplied())
    if supplied.dataset is not None:
        raise UserError(
            f"components={config.components}: must be without dataset: tune reads its images itself"
        )
    return supplied


def _trust_option(config: TrainConfig) -> str:
    """What a command needs beside, where the network or components are the user's own."""
    return "".join(f" --trust {name}" for name in (config.model, config.components) if is_import(name))


def _work_in_processes(jobs: Sequence[_Job]) -> None:
    context = multiprocessing.get_context("spawn")
    asking = context.Lock()
    workers = [context.Process(target=_work_quietly, args=(job, asking)) for job in jobs]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    if any(worker.exitcode for worker in workers):
        raise UserError(
            "processes: one of them ended with an error, which stands above; complete trials are kept"
        )


def _work_quietly(job: _Job, asking: AbstractContextManager[Any]) -> None:
    """Run trials in a process that ends without a word on Ctrl-C, which the first process reports."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with trusting(job.trust):
        _work(job, asking)


def _work(job: _Job, asking: AbstractContextManager[Any] | None = None) -> None:
    """Run trials, one after another, until the time is up.

    Args:
        job: What to do.
        asking: Held while a trial is begun: two processes could be given the same one that waits, as SQLite
            does not lock what is read.
    """
    asking = asking or contextlib.nullcontext()
    ends = budget.clock() + job.seconds
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    tuning = Tuning(job.folder)
    base = tuning.base
    if base.workers is None:
        base = dataclasses.replace(base, workers=job.workers)
    minimize = tuning.minimize
    study = open_study(job.folder, minimize=minimize, pruner=job.pruner, seed=job.seed)
    dataset = _without_test(
        open_dataset(
            base.data, splits=base.splits, seed=base.seed, download=base.download, options=base.data_options
        )
    )
    space = planned_space(study)
    planned = parse_duration(base.time) if base.time is not None else 0.0
    durations: list[float] = []
    while True:
        # With what comes before and after the training of a trial.
        expected = max(planned, statistics.fmean(durations) if durations else 0.0)
        with asking:
            trials = study.get_trials(deepcopy=False)
            begun = len([trial for trial in trials if trial.state.name != "WAITING"])
            if job.trials is not None and begun >= job.trials:
                return
            if begun and budget.clock() + expected > ends:
                return
            started = budget.clock()
            trial = study.ask(space)
        _try(study, trial, base, dataset, job.folder)
        durations.append(budget.clock() - started)
        records = read_trials(study)
        _say(_line(records, trial.number + 1, minimize=minimize, metric=tuning.metric))
        write_table(job.folder, records)


def _try(
    study: optuna.Study, trial: optuna.Trial, base: TrainConfig, dataset: ImageDataset, folder: Path
) -> None:
    """Train with the values of a trial, and report the result."""
    run = Run(folder / f"trial-{trial.number + 1:04d}")
    reporter = TrialReporter(trial)
    try:
        config = dataclasses.replace(base, out=run.folder, **trial.params)
        with _into_log(folder / "logs" / f"{run.folder.name}.log"):
            train_on(run, config, dataset, callbacks=[reporter])
    except (UserError, torch.OutOfMemoryError) as error:  # it diverged, or did not fit into memory
        if isinstance(error, UserError):
            reason = one_line(error)
        else:  # beside the training's steps, such as while their speed is measured
            batch_size = trial.params.get("batch_size", base.batch_size)
            reason = f"batch_size={batch_size}: does not fit into the GPU's memory"
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=_state("FAIL"))
        return
    except KeyboardInterrupt:
        trial.set_user_attr("reason", "interrupted")
        study.tell(trial, state=_state("FAIL"))
        raise
    finally:
        for heavy in (run.checkpoint.parent, run.folder / run_folder.TENSORBOARD):
            shutil.rmtree(heavy, ignore_errors=True)
    by = reporter.by
    best = run.rows[run.best_epoch - 1]
    trial.set_user_attr("epochs", len(run.rows))
    trial.set_user_attr("val_loss", best.val_loss)
    if reporter.pruned:
        study.tell(trial, state=_state("PRUNED"))
    else:
        study.tell(trial, getattr(best, MONITORED[by][0]))


class TrialReporter(Callback):
    """Compares a training with the trials before it, at each tenth, and stops it where it is hopeless.

    Args:
        trial: To report to.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.pruned = False
        self.by: Any = "accuracy"
        self._best: float | None = None
        self._reported = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read by which metric epochs are ranked."""
        self.by = cast(ClassificationTask, pl_module).config.best_by

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the best value so far, once for each tenth that is done."""
        name, mode = MONITORED[self.by]
        value = float(trainer.callback_metrics[name])
        better = max if mode == "max" else min
        self._best = value if self._best is None else better(self._best, value)
        done = trainer.current_epoch + 1
        reached = min(_POINTS * done // (trainer.max_epochs or done), _POINTS - 1)
        for point in range(self._reported + 1, reached + 1):
            self.trial.report(self._best, point)
        if reached > self._reported:
            self._reported = reached
            if done == trainer.max_epochs:
                return  # it is fully trained
            if self.trial.should_prune():
                self.pruned = trainer.should_stop = True


def _finish(tuning: Tuning) -> None:
    """Write the table of the trials, and the best settings."""
    write_table(tuning.folder, tuning.trials)
    if (best := tuning.best) is not None:
        _write(
            tuning.config_file,
            dataclasses.replace(tuning.base, out=tuning.folder / "best", **best.values),
        )


def _metric(config: TrainConfig) -> BestBy:
    return config.best_by or ("balanced-accuracy" if config.imbalance not in (None, "none") else "accuracy")


def _abandoned(study: optuna.Study) -> list[int]:
    """Trials of a process that has ended."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _without_test(dataset: ImageDataset) -> ImageDataset:
    return dataset.select(np.flatnonzero(dataset.splits != "test"))


def _with_fixed(base: TrainConfig, default: ResolvedConfig, *, varied: Collection[str]) -> TrainConfig:
    """The configuration with what the clock, the data or this machine decided once, for all trials."""
    base = dataclasses.replace(
        base,
        best_by=base.best_by or (default.best_by if default.task == "multi-label" else None),
        size=default.size,
        channels=default.channels,
        weights=default.weights,
        precision=default.precision,
    )
    if "model" in varied:
        return base
    return dataclasses.replace(base, model=default.model, model_options=default.model_options)


def _write(path: Path, config: TrainConfig) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(config_to_yaml(config), encoding="utf-8")


@contextlib.contextmanager
def _into_log(path: Path) -> Iterator[None]:
    """Write what a training says to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers = [
        handler
        for handler in logging.getLogger("skipnets").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        before = [handler.setStream(log) for handler in handlers]
        try:
            yield
        finally:
            for handler, stream in zip(handlers, before, strict=True):
                if stream is not None:
                    handler.setStream(stream)


def _line(records: Sequence[TrialRecord], number: int, *, minimize: bool, metric: str) -> str:
    """What the trial with this number came to."""
    last = next(record for record in records if record.number == number)
    best = best_of(records, minimize=minimize)
    settings = ", ".join(f"{name} {_short(value)}" for name, value in last.values.items())
    result = (
        last.reason or f"val {metric} {_number(last.value)}{' (pruned)' if last.state == 'pruned' else ''}"
    )
    best_so_far = "" if best is None else f"; best {_number(best.value)} (trial {best.number})"
    return f"trial {last.number}: {result}{best_so_far}  {settings}  {last.seconds:.0f} s"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
