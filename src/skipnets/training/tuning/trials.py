"""The trials of a tuning: their database, and what is read from it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skipnets import run_folder
from skipnets.errors import UserError, needs_extra
from skipnets.files import atomic_path

with needs_extra("tune"):
    import optuna
    from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
    from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "Pruner",
    "TrialRecord",
    "best_of",
    "importances",
    "open_study",
    "plan_trials",
    "planned_space",
    "read_trials",
    "write_table",
]

DATABASE = "study.db"
TABLE = "trials.csv"
BASE = run_folder.TUNING

Pruner = Literal["median", "halving"]

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_SPACE = "space"  # the study's attribute
# At most so many trials are random at first, for the sampler to learn from; optuna's own number.
_RANDOM_TRIALS = 10


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial.

    Attributes:
        number: Counted from 1; the first has the settings of a training without tuning.
        state: "complete"; "pruned", stopped because it was worse than others at the same point; "failed" or
            "running".
        value: The metric on the validation split, of its best epoch; None if there was none.
        val_loss: The validation loss of that epoch.
        seconds: Duration.
        epochs: Epochs that it trained.
        values: Option → value, of the options that are varied.
        reason: Why it failed.
    """

    number: int
    state: str
    value: float | None
    val_loss: float | None
    seconds: float
    epochs: int
    values: dict[str, Any]
    reason: str = ""


def open_study(
    folder: Path, *, minimize: bool, pruner: Pruner = "median", seed: int | None = None
) -> optuna.Study:
    """Open or create the database of a tuning.

    Args:
        folder: Of the tuning.
        minimize: Whether a lower value is better.
        pruner: What stops trials.
        seed: Of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{(folder / DATABASE).resolve()}",
        engine_kwargs={"connect_args": {"timeout": 60}},  # another process may be writing
    )
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    }
    return optuna.create_study(
        storage=storage,
        study_name="skipnets",
        direction="minimize" if minimize else "maximize",
        sampler=optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=seed, constant_liar=True),
        pruner=pruners[pruner],
        load_if_exists=True,
    )


def plan_trials(
    study: optuna.Study, space: Mapping[str, BaseDistribution], *, first: Mapping[str, Any]
) -> None:
    """Record what is varied, for all processes and for when the tuning goes on, and the first trial.

    Args:
        study: A new one.
        space: Option → the values that a trial may take.
        first: Option → its value in the first trial.
    """
    study.set_user_attr(_SPACE, {name: distribution_to_json(choices) for name, choices in space.items()})
    study.enqueue_trial(dict(first))


def planned_space(study: optuna.Study) -> dict[str, BaseDistribution]:
    """Option → the values that a trial may take, as they were recorded.

    Raises:
        UserError: The tuning was interrupted before that.
    """
    if _SPACE not in study.user_attrs:
        raise UserError("resume: the tuning ended before its first trial; begin a new one")
    return {name: json_to_distribution(text) for name, text in study.user_attrs[_SPACE].items()}


def load_study(folder: Path) -> optuna.Study:
    """The study of an existing tuning, to read from."""
    if not (folder / DATABASE).is_file():
        raise UserError(f"{folder} is not the folder of a tuning (no {DATABASE} in it)")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name="skipnets", storage=f"sqlite:///{(folder / DATABASE).resolve()}")


def read_trials(study: optuna.Study) -> list[TrialRecord]:
    """All trials that were begun, in their order."""
    return [_record(trial) for trial in study.get_trials(deepcopy=False) if trial.state in _STATES]


def _record(trial: FrozenTrial) -> TrialRecord:
    intermediate = trial.intermediate_values
    value = trial.value if trial.state == TrialState.COMPLETE else None
    if value is None and intermediate:
        value = intermediate[max(intermediate)]
    return TrialRecord(
        number=trial.number + 1,
        state=_STATES[trial.state],
        value=value,
        val_loss=trial.user_attrs.get("val_loss"),
        seconds=trial.duration.total_seconds() if trial.duration else math.nan,
        epochs=trial.user_attrs.get("epochs", 0),
        values=dict(trial.params),
        reason=trial.user_attrs.get("reason", ""),
    )


def best_of(trials: Sequence[TrialRecord], *, minimize: bool) -> TrialRecord | None:
    """The best complete trial; of equal ones that with the lower validation loss."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    sign = -1 if minimize else 1

    def rank(trial: TrialRecord) -> tuple[float, float]:
        assert trial.value is not None
        return sign * trial.value, -(math.inf if trial.val_loss is None else trial.val_loss)

    return max(complete, key=rank, default=None)


def importances(study: optuna.Study) -> dict[str, float]:
    """Option → its share in what the trials' values differ by; empty while there is too little to tell.

    From PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv 2304.10255).
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}


def write_table(folder: Path, trials: Sequence[TrialRecord]) -> Path:
    """Write trials.csv."""
    options = list(dict.fromkeys(name for trial in trials for name in trial.values))
    path = folder / TABLE
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "value", "val_loss", "seconds", "epochs", *options, "reason"])
        for trial in trials:
            writer.writerow(
                [
                    trial.number,
                    trial.state,
                    "" if trial.value is None else trial.value,
                    "" if trial.val_loss is None else trial.val_loss,
                    f"{trial.seconds:.1f}",
                    trial.epochs,
                    *(trial.values.get(name, "") for name in options),
                    trial.reason,
                ]
            )
    return path
