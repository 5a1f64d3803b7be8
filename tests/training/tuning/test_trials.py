"""What is read from a tuning's database."""

from __future__ import annotations

import csv
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from skipnets.errors import UserError
from skipnets.training.tuning.trials import (
    best_of,
    importances,
    load_study,
    open_study,
    read_trials,
    write_table,
)

SPACE = {
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "augmentation": CategoricalDistribution(("none", "flip")),
}


def test_trials_are_read_and_written(tmp_path: Path) -> None:
    study = open_study(tmp_path, minimize=False, seed=0)
    study.enqueue_trial({"lr": 0.1, "augmentation": "flip"})
    assert read_trials(study) == []  # it is waiting
    first = study.ask(SPACE)
    first.set_user_attr("val_loss", 0.5)
    first.report(0.7, 1)
    study.tell(first, 0.9)
    second = study.ask(SPACE)
    second.report(0.2, 1)
    second.report(0.3, 2)
    study.tell(second, state=TrialState.PRUNED)
    third = study.ask(SPACE)
    third.set_user_attr("reason", "it diverged")
    study.tell(third, state=TrialState.FAIL)
    trials = read_trials(load_study(tmp_path))
    assert [(trial.number, trial.state, trial.value) for trial in trials] == [
        (1, "complete", 0.9),
        (2, "pruned", 0.3),
        (3, "failed", None),
    ]
    assert trials[0].values == {"lr": 0.1, "augmentation": "flip"}
    rows = list(csv.DictReader(write_table(tmp_path, trials).read_text().splitlines()))
    assert [row["value"] for row in rows] == ["0.9", "0.3", ""]
    assert (rows[0]["lr"], rows[0]["val_loss"], rows[2]["reason"]) == ("0.1", "0.5", "it diverged")


def test_of_equal_trials_the_lower_loss_is_the_best(tmp_path: Path) -> None:
    study = open_study(tmp_path, minimize=False, seed=0)
    for value, loss in ((0.9, 0.5), (0.9, 0.4), (0.8, 0.1)):
        trial = study.ask(SPACE)
        trial.set_user_attr("val_loss", loss)
        study.tell(trial, value)
    trials = read_trials(study)
    best = best_of(trials, minimize=False)
    assert best is not None
    assert best.number == 2
    worst = best_of(trials, minimize=True)
    assert worst is not None
    assert worst.number == 3
    assert best_of([], minimize=True) is None


def test_the_option_that_decides_is_the_important_one() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    assert importances(study) == {}
    for _ in range(40):
        trial = study.ask(SPACE)
        study.tell(trial, 1.0 if trial.params["augmentation"] == "flip" else 0.1 + trial.params["lr"] / 100)
    shares = importances(study)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["augmentation"] > shares["lr"]


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a tuning \(no study.db in it\)"):
        load_study(tmp_path)
