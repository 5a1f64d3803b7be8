"""The page on a tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from skipnets.errors import UserError
from skipnets.report import write_tuning_report
from skipnets.training.config import TrainConfig, config_to_yaml
from skipnets.training.tuning.trials import BASE, open_study

SPACE = {
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "batch_size": CategoricalDistribution((16, 32)),
    "model": CategoricalDistribution(("resnet18", "resnet34")),
}


def test_the_page_shows_all_trials(tmp_path: Path) -> None:
    (tmp_path / BASE).write_text(config_to_yaml(TrainConfig(data="pets<b>", out=tmp_path, time="20s")))
    study = open_study(tmp_path, minimize=False, seed=0)
    with pytest.raises(UserError, match="no trial is complete yet"):
        write_tuning_report(tmp_path)
    for number in range(12):
        trial = study.ask(SPACE)
        trial.report(0.4, 1)
        if number == 7:
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 8:
            trial.set_user_attr("reason", "lr: it <i>diverged</i>")
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, 0.5 + 0.03 * number)
    text = write_tuning_report(tmp_path).read_text()
    assert text.count("<svg") == 4  # two charts, for wide and for narrow screens
    assert "0.8300" in text  # the best
    assert "0.5000" in text  # the first, with the default settings
    assert "12 trials of 20s each" in text
    assert "What matters" in text
    assert "pets&lt;b&gt;" in text
    assert "<dt>trial 9</dt><dd>lr: it &lt;i&gt;diverged&lt;/i&gt;</dd>" in text
    assert not [word for word in ("http://", "https://", "<script", "src=") if word in text]
    for name in ("resnet18", "resnet34"):
        assert name in text
    with pytest.raises(UserError, match=r"^output=.*trials.txt: must end in .html$"):
        write_tuning_report(tmp_path, tmp_path / "trials.txt")


def test_a_single_trial_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / BASE).write_text(config_to_yaml(TrainConfig(data="pets", out=tmp_path, epochs=2)))
    study = open_study(tmp_path, minimize=False, seed=0)
    study.tell(study.ask(SPACE), 0.5)
    text = write_tuning_report(tmp_path).read_text()
    assert "What matters" not in text
    assert "1 trial of 2 epochs each" in text
