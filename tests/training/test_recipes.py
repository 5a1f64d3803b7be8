"""The recipes fill what a configuration leaves open."""

from __future__ import annotations

import dataclasses

import pytest

from skipnets.errors import UserError
from skipnets.training.config import FIELDS, TrainConfig
from skipnets.training.recipes import RECIPES, with_recipe


def config(**fields: object) -> TrainConfig:
    return TrainConfig(**({"data": "digits", "out": "runs/x"} | fields))  # type: ignore[arg-type]


def test_every_recipe_fills_the_same_fields() -> None:
    optional = {"model", "size", "fit", "crop_fraction"}
    assert len({frozenset(set(recipe) - optional) for recipe in RECIPES.values()}) == 1
    assert all(set(recipe) <= set(FIELDS) for recipe in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_explicit_values_win(name: str) -> None:
    base = config(recipe=name, weights="imagenet" if name == "finetune" else None)
    filled = with_recipe(base)
    assert {field: getattr(filled, field) for field in RECIPES[name]} | {"warmup": 0} == RECIPES[name] | {
        "warmup": 0
    }
    assert with_recipe(dataclasses.replace(base, lr=0.25)).lr == 0.25
    assert with_recipe(dataclasses.replace(base, ema=0.0)).ema == 0.0


def test_the_papers_recipes_equal_the_papers() -> None:
    cifar = with_recipe(config(recipe="paper-cifar"))
    assert (cifar.optimizer, cifar.lr, cifar.momentum, cifar.nesterov) == ("sgd", 0.1, 0.9, True)
    assert (cifar.weight_decay, cifar.decay_norm_and_bias, cifar.batch_size, cifar.epochs) == (
        1e-4,
        True,
        64,
        300,
    )
    assert (cifar.milestones, cifar.warmup, cifar.augmentation) == ((0.5, 0.75), 0, "crop-flip")
    imagenet = with_recipe(config(recipe="paper-imagenet"))
    assert (imagenet.batch_size, imagenet.epochs, imagenet.milestones) == (256, 90, (1 / 3, 2 / 3))


def test_auto_is_the_default_and_what_is_chosen_goes_before_the_recipe() -> None:
    assert with_recipe(config()).recipe == with_recipe(config(weights="imagenet")).recipe == "auto"
    assert with_recipe(config(), lr=0.3, model="resnet20").lr == 0.3
    assert with_recipe(config(lr=0.2), lr=0.3).lr == 0.2
    assert with_recipe(config(), epochs=2).warmup == 0.5


def test_finetuning_needs_weights() -> None:
    with pytest.raises(UserError, match=r"^weights: must be given for recipe=finetune"):
        with_recipe(config(recipe="finetune"))


def test_a_short_run_warms_up_for_a_quarter_at_most() -> None:
    assert with_recipe(config(recipe="scratch")).warmup == 5
    assert with_recipe(config(recipe="scratch", epochs=4)).warmup == 1
    assert with_recipe(config(recipe="scratch", epochs=4, warmup=3)).warmup == 3
