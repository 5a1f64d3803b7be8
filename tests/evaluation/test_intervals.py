"""Intervals against their equations, published values, and how often they hold in simulations."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skipnets.evaluation.intervals import (
    auroc_interval,
    mean_interval,
    paired_interval,
    share_interval,
    wilson_interval,
)

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(trials=st.integers(1, 10**7), share=st.floats(0, 1))
def test_wilson_interval_solves_its_equation(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials)
    observed = successes / trials
    assert 0 <= low <= observed <= high <= 1
    for end in (low, high):  # |p̂ − p| = z √(p (1 − p) / n), unless the end is the edge itself
        if 0 < end < 1:
            assert abs(observed - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / trials), rel=1e-5)


@pytest.mark.parametrize("right", [0, 3, 20])
def test_images_that_stand_alone_have_wilson_s_interval(right: int) -> None:
    flags = np.arange(20) < right
    assert share_interval(flags) == wilson_interval(right, 20)


def test_images_of_a_unit_that_are_alike_count_once() -> None:
    """Ten copies of each of many images tell as much as these images do."""
    rng = np.random.default_rng(0)
    alone = rng.random(3000) < 0.7
    copies = share_interval(np.repeat(alone, 10), np.repeat(np.arange(3000), 10))
    assert copies == pytest.approx(share_interval(alone), abs=1e-4)


def test_few_units_have_wide_intervals_and_one_tells_nothing() -> None:
    right, units = np.array([1, 1, 1, 0, 1, 0], bool), np.array([0, 0, 0, 1, 1, 1])
    low, high = share_interval(right, units)
    assert high - low > 0.9
    assert share_interval(right, np.zeros(6, np.int64)) == pytest.approx((0.15, 0.95), abs=0.1)
    assert share_interval(np.ones(30, bool), np.arange(30) // 10) == pytest.approx(wilson_interval(3, 3))


@pytest.mark.parametrize("units", [12, 60])
def test_intervals_of_alike_images_hold_as_often_as_promised(units: int) -> None:
    """Patients with ten images each, whose shares of right ones differ (a beta distribution of mean 0.8)."""
    rng = np.random.default_rng(1)
    number = np.repeat(np.arange(units), 10)
    held, naive = 0, 0
    for _ in range(1000):
        right = rng.random(len(number)) < rng.beta(1.6, 0.4, units)[number]
        low, high = share_interval(right, number)
        held += low <= 0.8 <= high
        low, high = wilson_interval(int(right.sum()), len(right))
        naive += low <= 0.8 <= high
    assert held >= 930
    assert naive < 750


@given(trials=st.integers(1, 1000), share=st.floats(0, 1))
def test_the_mean_of_one_share_is_that_share(trials: int, share: float) -> None:
    successes = round(share * trials)
    interval = wilson_interval(successes, trials)
    assert mean_interval([successes / trials], [interval]) == pytest.approx(interval)


def test_the_mean_of_many_shares_without_errors() -> None:
    """Wilson's limit for n of n is n / (n + z²); K such distances add to √K, which is divided by K."""
    low, high = mean_interval([1.0] * 4, [wilson_interval(20, 20)] * 4)
    assert (low, high) == (pytest.approx(1 - Z**2 / (20 + Z**2) / 2), pytest.approx(1.0))


@pytest.mark.parametrize("shares", [(0.99, 0.95), (0.9, 0.6, 0.99)])
def test_the_interval_of_a_mean_of_shares_has_its_nominal_coverage(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        right = [int(count) for count in rng.binomial(25, shares)]
        low, high = mean_interval(
            [hits / 25 for hits in right], [wilson_interval(hits, 25) for hits in right]
        )
        held += low <= np.mean(shares) <= high
    assert 0.93 <= held / 2000 <= 0.985


@given(auroc=st.floats(0, 1), positives=st.integers(1, 500), negatives=st.integers(1, 500))
@example(auroc=0.99999, positives=24, negatives=118)
def test_an_area_s_interval_solves_its_equation(auroc: float, positives: int, negatives: int) -> None:
    low, high = auroc_interval(auroc, positives, negatives)
    assert 0 <= low <= auroc + 1e-12
    assert auroc - 1e-12 <= high <= 1
    balanced = (positives + negatives) / 2 - 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9 and abs(end - auroc) > 1e-6:
            spread = 1 + balanced * ((1 - end) / (2 - end) + end / (1 + end))
            variance = end * (1 - end) * spread / (positives * negatives)
            assert abs(auroc - end) == pytest.approx(Z * math.sqrt(variance), rel=1e-4)


def test_an_area_of_one_pair_is_a_share_of_one() -> None:
    assert auroc_interval(1.0, 1, 1) == pytest.approx(wilson_interval(1, 1))
    assert auroc_interval(0.0, 1, 1) == pytest.approx(wilson_interval(0, 1))


@pytest.mark.parametrize("distance", [1.0, 2.5])
def test_the_interval_of_an_area_has_its_nominal_coverage(distance: float) -> None:
    """Of two normal populations, whose area is known."""
    rng = np.random.default_rng(1)
    true = NormalDist().cdf(distance / math.sqrt(2))
    held = 0
    for _ in range(1000):
        scores, others = rng.normal(distance, size=30), rng.normal(size=40)
        low, high = auroc_interval(float((scores[:, None] > others).mean()), 30, 40)
        held += low <= true <= high
    assert held / 1000 >= 0.94


@pytest.mark.parametrize("trials", [20, 200])
@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.15, 0.05), (0.0, 0.0)])
def test_paired_interval_covers_the_difference(trials: int, lost: float, won: float) -> None:
    """In at least 94% of simulated experiments, as Agresti and Min find."""
    outcomes = np.random.default_rng(0).multinomial(trials, (lost, won, 1 - lost - won), size=2000)
    intervals = [paired_interval(int(a), int(b), trials) for a, b, _ in outcomes]
    assert np.mean([low <= lost - won <= high for low, high in intervals]) >= 0.94


def test_paired_interval_is_symmetric_and_narrows() -> None:
    low, high = paired_interval(3, 1, 50)
    assert paired_interval(1, 3, 50) == (pytest.approx(-high), pytest.approx(-low))
    widths = [paired_interval(0, 0, trials) for trials in (6, 60, 600)]
    assert [high for _, high in widths] == sorted((high for _, high in widths), reverse=True)
    assert widths[0][1] > 0.2  # six images that agree say little
