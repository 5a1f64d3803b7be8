from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from skipnets.data.augmentation import AUGMENTATIONS
from skipnets.models.registry import REGISTRY
from skipnets.training.auto import (
    RULES,
    Candidate,
    Facts,
    apply_rules,
    candidates,
    choose_network,
    default_seconds,
    wanted_images,
)
from skipnets.training.config import FIELDS

FACTS = Facts(images=1500, side=64, passes=20, batch_size=32, mirrored=1, pretrained=0)


def test_every_rule_gives_options_tells_its_evidence_and_can_hold() -> None:
    facts = [
        Facts(images=images, side=side, passes=passes, batch_size=batch, mirrored=mirrored, pretrained=start)
        for images, side, passes, batch, mirrored, start in itertools.product(
            (50, 500, 5000, 50_000), (8, 32, 64, 224), (1, 5, 30, 100, 400), (32, 64, 128), (0, 1), (0, 1)
        )
    ]
    read = {name for rules in RULES.values() for rule in rules for name in (*rule.least, *rule.below)}
    assert read == {field.name for field in dataclasses.fields(Facts)}
    for rules in RULES.values():
        for number, rule in enumerate(rules):
            assert set(rule.values) <= set(FIELDS)
            assert rule.evidence
            assert any(rule.holds(f) and not any(r.holds(f) for r in rules[:number]) for f in facts)
        assert rules[-1].least == rules[-1].below == {}
    assert {rule.values.get("augmentation", "none") for r in RULES.values() for rule in r} <= set(
        AUGMENTATIONS
    )


def test_the_benchmark_varies_what_the_rules_give() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "recipes.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_recipes", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    varied: dict[str, set[Any]] = defaultdict(set)
    for text in module.OPTIONS:
        for name, value in yaml.safe_load(text or "{}").items():
            varied[name].add(value)
    given: dict[str, set[Any]] = defaultdict(set)
    for rule in itertools.chain.from_iterable(RULES.values()):
        for name, value in rule.values.items():
            given[name].add(value)
    assert set(given) <= set(varied)
    for name in ("batch_size", "augmentation", "whiten_stem"):
        assert given[name] <= varied[name]


def test_images_that_must_not_be_mirrored_are_not() -> None:
    for passes in (2, 20, 200):
        facts = dataclasses.replace(FACTS, passes=passes, mirrored=0)
        augmentation = AUGMENTATIONS[apply_rules(facts)["augmentation"]]
        assert not augmentation.mirror


def test_the_rate_follows_the_batch_that_is_used() -> None:
    many = dataclasses.replace(FACTS, images=50_000, side=32)
    assert apply_rules(many, ("batch",)) == {"batch_size": 128}
    rates = [
        apply_rules(dataclasses.replace(many, batch_size=batch_size), ("rate",))["lr"]
        for batch_size in (8, 32, 64, 128, 512)
    ]
    assert rates == sorted(rates)
    assert rates[0] == rates[1] < rates[2] < rates[3]


def test_candidates_are_known_networks_from_cheap_to_costly() -> None:
    for side in (8, 28, 32, 64, 96, 150, 224):
        ladder = candidates(side, fixed=False)
        assert {candidate.model for candidate in ladder} <= set(REGISTRY)
        assert len(set(ladder)) == len(ladder) > 2
        assert [c.side for c in ladder] == sorted(c.side for c in ladder)
        assert max(c.side for c in ladder) <= max(1.2 * side, 64)
        if side <= 64:
            assert {c.side for c in ladder} == {side}
    assert {c.side for c in candidates(224, fixed=True)} == {224}


@pytest.mark.parametrize(("seconds", "chosen"), [(1, "a"), (99, "a"), (100, "b"), (399, "b"), (4000, "c")])
def test_the_most_costly_network_that_fits_is_chosen(seconds: float, chosen: str) -> None:
    measured: list[str] = []
    costs = {"a": 0.1, "b": 1.0, "c": 4.0}

    def measure(candidate: Candidate) -> float:
        measured.append(candidate.model)
        return costs[candidate.model]

    ladder = [Candidate(model=name, side=64) for name in costs]
    found, speed = choose_network(ladder, measure, wanted=lambda _: 100, seconds=seconds)
    assert (found.model, speed) == (chosen, costs[chosen])
    assert len(measured) == min(ord(chosen) - ord("a") + 2, 3)


def test_larger_networks_and_more_images_want_more_to_be_shown() -> None:
    for side in (32, 64):
        ladder = candidates(side, fixed=False)
        wanted = [wanted_images(candidate, 2500) for candidate in ladder]
        assert wanted == sorted(wanted)
        assert wanted_images(ladder[-1], 10_000) == 2 * wanted[-1]


def test_the_time_grows_with_the_pixels_between_a_minute_and_an_hour() -> None:
    assert default_seconds(1000, 8) == 60
    assert default_seconds(2000, 64) == 300
    assert default_seconds(50_000, 32) == 750
    assert default_seconds(10**7, 224) == 3600
    assert default_seconds(2000, 64, reading=100) == 400
    assert default_seconds(2000, 64, reading=1e5) == 3600
