from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from skipnets.data.sources import open_dataset
from skipnets.training import TrainConfig, budget
from skipnets.training.announcement import Remarks, announcement
from skipnets.training.prepare import prepare
from skipnets.training.progress_lines import end_text
from skipnets.training.reading import Reading

MakeConfig = Callable[..., TrainConfig]


def _rows(text: str) -> list[str]:
    """The rows of a table, each on one line."""
    return re.sub(r"\n +", " ", text).splitlines()


def test_network_length_and_settings_are_told(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(epochs=None, time="50s", cutmix=1.0)
    dataset = open_dataset(config.data)
    prepared = prepare(config, dataset)
    assert prepared.training_ends is not None
    assert prepared.seconds_per_image is not None
    ends = prepared.training_ends + budget.finish_seconds(
        len(dataset.split("test")), prepared.seconds_per_image
    )
    monkeypatch.setattr(budget, "clock", lambda: ends - 49.2)
    text = announcement(prepared, dataset)
    assert max(map(len, text.splitlines())) <= 80
    network, length, recipe = _rows(text)
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    assert f" {parameters:,} parameters, 8×8 gray, " in network
    assert re.search(r" ms an image on \d+ CPU threads?$", network)
    assert f" {prepared.config.epochs} epochs of " in length
    assert re.search(r"; ends at \d\d:\d\d, in 49 s$", length)
    assert "augmentation none; CutMix 1; label smoothing" in recipe
    monkeypatch.undo()
    mirrored = prepare(tiny(augmentation="flip"), dataset)
    assert "augmentation flip (mirrored too); label" in _rows(announcement(mirrored, dataset))[-1]


def test_steps_are_of_the_images_of_all_devices_and_accumulated_batches(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(tiny().data)
    prepared = prepare(tiny(accumulate=2), dataset)
    assert "3 epochs of 3 steps of 32 images" in announcement(prepared, dataset)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "3 epochs of 2 steps of 64 images" in announcement(prepared, dataset)


def test_reading_that_takes_long_and_what_was_found_on_the_way_are_told(tiny: MakeConfig) -> None:
    config = tiny()
    dataset = open_dataset(config.data)
    remarks = Remarks(dataset)
    prepared = prepare(config, dataset)
    assert "reading" not in announcement(prepared, dataset, remarks=remarks.new())
    dataset.listing.notes.append("window: 0 to 900")
    dataset.listing.warnings.append("images are black")
    photographs = replace(prepared, reading=Reading(seconds_per_image=1.1, before=112.2))
    note, warning, *_, reading = _rows(announcement(photographs, dataset, remarks=remarks.new()))
    assert note.split(maxsplit=1) == ["note", "window: 0 to 900"]
    assert warning.split(maxsplit=1) == ["warning", "images are black"]
    assert "the images are read once, which takes about 1 min 52 s, and held in memory" in reading


def test_a_time_that_is_too_short_is_said_and_no_time_is_negative(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(epochs=None, time="1s")
    dataset = open_dataset(config.data)
    prepared = replace(prepare(config, dataset), training_ends=100.0, seconds_per_image=0.5)
    monkeypatch.setattr(budget, "clock", lambda: 110.0)
    _, length, _, note = _rows(announcement(prepared, dataset))
    assert re.search(r" 4 epochs of 1 step of \d+ images", length)
    assert "ends at" not in length
    # 11 s have passed when the end of training is 10 s ago; validation costs a third of training.
    seconds = 11 + 4 * 0.5 * (prepared.config.epoch_images + 18 / 3)
    assert re.match(rf"note +a time of 1s is too short: all this takes about {seconds:.0f} s, from the", note)
    assert re.search(r"^ends at \d\d:\d\d, in 0 s$", end_text(-1.0))
