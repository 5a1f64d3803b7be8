"""What tuning varies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.training import TrainConfig
from skipnets.training.config import ResolvedConfig
from skipnets.training.prepare import prepare
from skipnets.training.tuning import space as space_module
from skipnets.training.tuning.space import TUNED, search_space

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def default(tiny: MakeConfig) -> ResolvedConfig:
    config = tiny(batch_size=None, augmentation=None)
    return prepare(config, find_dataset(config.data)).config


def test_the_default_lies_within_the_space(tiny: MakeConfig, default: ResolvedConfig) -> None:
    free = tiny(model=None, model_options={}, batch_size=None, augmentation=None)
    space = search_space(free, default, train_images=1000)
    assert set(space) == set(TUNED)
    for name, choices in space.items():
        value: Any = getattr(default, name)
        assert choices._contains(choices.to_internal_repr(value))
    rate = space["lr"]
    assert isinstance(rate, FloatDistribution)
    assert rate.log
    assert rate.low < default.lr < rate.high


def test_what_is_given_is_not_varied(tiny: MakeConfig, default: ResolvedConfig) -> None:
    space = search_space(tiny(batch_size=None, lr=0.1), default, train_images=1000)
    assert set(space) == {"weight_decay", "batch_size"}
    everything = tiny(lr=0.1, weight_decay=0.1)
    with pytest.raises(UserError, match=r"^there is nothing to tune: leave out some of lr, weight_decay,"):
        search_space(everything, default, train_images=1000)


@pytest.mark.parametrize(
    ("weights", "cached", "names"),
    [
        ("imagenet", ("densenet121", "resnet18", "vgg16"), ("resnet18", "densenet121")),
        ("imagenet", ("resnet18",), None),
        ("other.safetensors", ("resnet18", "densenet121"), None),
    ],
)
def test_networks_are_those_that_have_the_default_s_weights(
    tiny: MakeConfig,
    default: ResolvedConfig,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    cached: tuple[str, ...],
    names: tuple[str, ...] | None,
) -> None:
    """Also where a training without tuning finds these weights without being asked for them."""
    monkeypatch.setattr(space_module, "is_cached", lambda name: name in cached)
    pretrained = dataclasses.replace(default, model="resnet18", weights=weights)
    networks = search_space(tiny(model=None, model_options={}), pretrained, train_images=1000).get("model")
    assert getattr(networks, "choices", None) == names


def test_batches_leave_some_steps_an_epoch(tiny: MakeConfig, default: ResolvedConfig) -> None:
    batch_size = search_space(tiny(batch_size=None), default, train_images=300)["batch_size"]
    assert isinstance(batch_size, CategoricalDistribution)
    assert max(batch_size.choices) == 32
