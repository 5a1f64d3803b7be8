"""The search for copies takes no more of a given time than it may."""

from __future__ import annotations

import pytest

from skipnets.training import TrainConfig
from skipnets.training.search_time import copies_within


def test_it_is_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies_within(TrainConfig(data="photos", out="run", time="2m")) == pytest.approx(12)
    assert copies_within(TrainConfig(data="photos", out="run", epochs=3)) is None
    assert copies_within(TrainConfig(data="photos", out="run")) == pytest.approx(360)  # of an hour
    # Processes that train together must come to the same splits.
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert copies_within(TrainConfig(data="photos", out="run", time="2m")) is None
