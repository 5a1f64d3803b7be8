"""Timing: fair turns, and ratios in which the machine's other work cancels."""

from __future__ import annotations

from skipnets.deploy import timing
from skipnets.deploy.timing import Timing, alternate


def test_candidates_take_turns_and_begin_unmeasured() -> None:
    calls: list[str] = []
    timings = alternate({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=8)
    assert "".join(calls[:2]) == "ab"
    rounds = ["".join(calls[i : i + 4]) for i in range(2, len(calls), 4)]
    assert len(rounds) == 8
    assert set(rounds) == {"aabb", "bbaa"}  # in another order, so that nobody always follows the same
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 8, "b": 8}


def test_there_are_always_some_rounds() -> None:
    timings = alternate({"a": lambda: None}, seconds=0.0)
    assert len(timings["a"].seconds) == timing.LEAST_ROUNDS


def test_median_and_quartiles() -> None:
    timing = Timing(seconds=(5.0, 1.0, 2.0, 3.0, 4.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)


def test_what_slows_a_whole_round_down_cancels_in_ratios() -> None:
    ours, theirs = Timing(seconds=(1.0, 10.0, 1.2)), Timing(seconds=(2.0, 20.0, 2.0))
    assert ours.ratio(theirs) == 0.5
    assert theirs.ratio(ours) == 2.0
