"""The learning rate that is found before a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_trainer import interrupt_at
from torch.optim.optimizer import register_optimizer_step_pre_hook

from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.training import TrainConfig, gpu_memory, rate_finder, train
from skipnets.training.prepare import class_weights, prepare
from skipnets.training.rate_finder import HIGHEST, LOWEST, averaged, find_rate, steepest
from skipnets.training.task import ClassificationTask

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipnets.training.rate_finder.STEPS", 30)


def test_the_steepest_descent_is_that_over_the_logarithm() -> None:
    """A sigmoid over the logarithm falls fastest at its middle, here at a rate of 0.03."""
    rates = np.geomspace(1e-5, 10, 100)
    losses = 2 - 1.5 / (1 + np.exp(-3 * np.log(rates / 0.03)))
    losses[rates > 1] = np.geomspace(0.6, 50, (rates > 1).sum())  # it diverges
    assert steepest(rates, losses) == pytest.approx(0.03, rel=0.15)
    losses[-1] = np.nan
    assert steepest(rates, losses) == pytest.approx(0.03, rel=0.15)
    with pytest.raises(UserError, match=r"^find_lr: the loss does not fall at any rate; give --lr$"):
        steepest(rates, np.arange(100.0))


@pytest.mark.parametrize("seed", range(5))
def test_batches_that_differ_do_not_hide_the_descent(seed: int) -> None:
    rates = np.geomspace(1e-5, 10, 100)
    losses = 2.3 - 0.4 / (1 + np.exp(-3 * np.log(rates / 0.03)))
    losses[rates > 0.3] += np.geomspace(0.01, 5, (rates > 0.3).sum())
    losses += np.random.default_rng(seed).normal(0, 0.1, len(losses))
    assert 0.005 < steepest(rates, averaged(losses)) < 0.3


def test_losses_are_averaged_from_the_first_one_on() -> None:
    losses = np.array([2.0, 1.0, 4.0, 0.5])
    for step, found in enumerate(averaged(losses)):
        ages = np.arange(step, -1, -1)
        assert found == pytest.approx(np.average(losses[: step + 1], weights=0.98**ages))


def test_looking_changes_nothing_that_training_starts_with(tiny: MakeConfig) -> None:
    dataset = find_dataset(tiny().data)
    prepared = prepare(tiny(recipe="scratch", block_execution="plain", channels_last=False), dataset)
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    search = find_rate(prepared, dataset)
    assert all(torch.equal(before[name], value) for name, value in prepared.model.state_dict().items())
    assert LOWEST < search.suggestion < HIGHEST
    assert (np.diff(search.rates) > 0).all()
    # Of three classes; at the lowest rates nothing is learned yet.
    np.testing.assert_allclose(search.losses[:3], np.log(3), rtol=0.2)


@pytest.mark.parametrize(
    "options",
    [{"bias_lr": 16.0}, {"layer_decay": 0.5}, {"bias_lr": 4.0, "layer_decay": 0.5, "accumulate": 2}],
)
def test_parts_of_the_network_have_the_multiples_of_the_rate_that_they_have_in_the_run(
    tiny: MakeConfig, options: dict[str, Any]
) -> None:
    rates: list[list[float]] = []
    config = tiny(recipe="scratch", epochs=1, block_execution="plain", channels_last=False, **options)
    dataset = find_dataset(config.data)
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    try:
        train(config)
        of_run = rates[0]
        rates.clear()
        search = find_rate(prepare(config, dataset), dataset)
    finally:
        hook.remove()
    assert len(set(of_run)) > 1
    np.testing.assert_allclose([each[0] for each in rates], search.rates)
    multiples = np.array(rates) / search.rates[:, None]
    np.testing.assert_allclose(multiples, np.tile(of_run, (len(rates), 1)) / of_run[0])


def test_several_devices_are_refused(tiny: MakeConfig) -> None:
    config = tiny(devices=2)
    dataset = find_dataset(config.data)
    with pytest.raises(UserError, match=r"^find_lr: needs one device, not 2$"):
        find_rate(prepare(config, dataset), dataset)


def test_a_step_that_does_not_fit_into_memory_is_one_line(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_memory, "_gpu_bytes", lambda: 1 << 40)
    interrupt_at(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(UserError, match=r"^batch_size=16: does not fit into the GPU's memory; take --batch"):
        train(tiny(find_lr=True))
    assert not tiny().out.exists()


def test_a_run_records_the_rate_that_it_found(tiny: MakeConfig, tmp_path: Path) -> None:
    run = train(tiny(find_lr=True, epochs=1, recipe="scratch", block_execution="plain", channels_last=False))
    config = run.config
    assert config.lr is not None
    assert not config.find_lr
    with Image.open(run.rates) as plot:
        assert plot.size == (1050, 600)
    with pytest.raises(UserError, match=r"^find_lr: must be given without lr=0\.1$"):
        train(tiny(find_lr=True, lr=0.1, out=tmp_path / "other"))


def test_the_loss_of_the_search_is_that_of_the_training(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(tiny().data)
    dataset = dataset.select(np.flatnonzero((dataset.labels != 0) | (dataset.splits != "train"))[:40])
    config = tiny(imbalance="weighted-loss", recipe="scratch", block_execution="plain", channels_last=False)
    given: list[Any] = []
    made = rate_finder.make_task

    def make_task(*arguments: Any) -> ClassificationTask:
        given.append(made(*arguments))
        return given[-1]

    monkeypatch.setattr(rate_finder, "make_task", make_task)
    find_rate(prepare(config, dataset), dataset)
    (task,) = given
    weights = task.loss.weight
    assert weights is not None
    labels = dataset.split("train").labels
    np.testing.assert_allclose(weights, class_weights(labels, len(dataset.classes)))
    assert len(set(weights.tolist())) > 1
