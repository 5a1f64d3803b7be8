"""How far long work is, in a log."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipnets.data import open_dataset
from skipnets.progress import LoggedProgress


def test_lines_come_after_a_while_and_then_at_growing_intervals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said = {}
    with caplog.at_level("INFO", "skipnets"):
        report = LoggedProgress("reading", first=2.0)
        for second in range(300):
            now = 100.0 + second
            report(1200 * second, 1_000_000)
            said |= {message: second for message in caplog.messages if message not in said}
    assert list(said.values())[:6] == [2, 6, 14, 30, 62, 122]
    assert next(iter(said)) == "reading: 2,400 of 1,000,000, 1,200/s"


def test_without_a_total_and_slowly(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report = LoggedProgress("predicting")
    with caplog.at_level("INFO", "skipnets"):
        report(3, description="explaining")
    assert caplog.messages == ["explaining: 3, 0.15/s"]


def test_each_step_has_its_own_rate_and_one_that_has_just_begun_has_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0, 110.0, 115.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report = LoggedProgress("predicting", first=0)
    with caplog.at_level("INFO", "skipnets"):
        report(500, 500)
        report(0, 24, "Grad-CAM")
        report._due = 0  # it is time again
        report(10, 24, "Grad-CAM")
    assert caplog.messages == ["predicting: 500 of 500, 5/s", "Grad-CAM: 0 of 24", "Grad-CAM: 10 of 24, 2/s"]


def test_a_search_for_copies_that_takes_long_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 40, 40), dtype=np.uint8)):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    seconds = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    monkeypatch.setattr("skipnets.data.contents._AT_ONCE", 1)
    with caplog.at_level("INFO", "skipnets"):
        open_dataset(tmp_path, duplicates="keep-together")
    assert any(line.startswith("reading images: 3 of 8, ") for line in caplog.messages)
    assert any(line.startswith("looking for copies among the images: 5 of 8, ") for line in caplog.messages)
