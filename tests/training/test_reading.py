from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import training_loader
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.training import budget, reading
from skipnets.training.reading import ReadingCost, sample_size, seconds_to_read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(20):
        label = tmp_path / "ab"[number % 2]
        label.mkdir(exist_ok=True)
        Image.new("L", (30, 20), number).save(label / f"{number:02d}.png")
    return tmp_path


def test_reading_is_the_mean_without_the_first_and_without_what_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a" / "04.png").write_bytes(b"no image")
    now = [0.0]
    durations = iter([9.0, *[0.01, 0.03] * 20])
    pixels = Preprocessing.training_pixels

    def slow(self: Preprocessing, image: object) -> object:
        found = pixels(self, image)  # type: ignore[arg-type]
        now[0] += next(durations)
        return found

    monkeypatch.setattr(Preprocessing, "training_pixels", slow)
    monkeypatch.setattr(budget, "clock", lambda: now[0])
    monkeypatch.setattr(reading, "_SECONDS", 60.0)
    images = open_dataset(folder, fractions=None)
    assert seconds_to_read(images, (20, 30), channels=1) == pytest.approx(0.02, rel=0.1)
    monkeypatch.setattr(reading, "_SECONDS", 5.0)  # the first one has taken longer
    durations = iter([9.0, 0.01])
    assert seconds_to_read(images, (20, 30), channels=1) == 9.0
    in_memory = np.zeros((20, 4, 4), dtype=np.uint8)
    held = ImageDataset(
        classes=images.classes,
        names=images.names,
        labels=images.labels,
        splits=images.splits,
        images=in_memory,
    )
    assert seconds_to_read(held, (4, 4), channels=1) == 0


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "trivial", "resized-crop"])
@pytest.mark.parametrize("window", [None, ((0.0, 40.0),)])
@pytest.mark.parametrize("held_bytes", [20 * 20 * 30 - 1, 20 * 20 * 30, 4 * 20 * 20 * 30])
def test_images_are_held_where_the_loader_holds_them(
    folder: Path, augmentation: str, window: tuple[tuple[float, float], ...] | None, held_bytes: int
) -> None:
    if window is not None:
        for path in folder.rglob("*.png"):
            Image.fromarray(np.full((20, 30), 300, dtype=np.uint16)).save(path)
    images = open_dataset(folder, fractions=None)
    preprocessing = Preprocessing((20, 30), channels=1, window=window, bits=8 if window is None else 16)
    loader = training_loader(images, preprocessing, augmentation, batch_size=4, held_bytes=held_bytes)
    holds = loader._batches.dataset.held is not None  # type: ignore[attr-defined]
    loader.close()
    cost = ReadingCost(
        images, others=5, channels=1, to_read=0.1, to_evaluate=0.2, workers=2, held_bytes=held_bytes
    )
    assert cost.is_held((20, 30), augmentation) == holds
    assert cost.before((20, 30), augmentation) == pytest.approx(20 * 0.1 + 5 * 0.2 if holds else 0)
    if augmentation != "trivial":
        assert cost.of_each((20, 30), augmentation) == (0 if holds else 0.1)


def test_varying_images_one_by_one_takes_time_of_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(images: np.ndarray, policy: str) -> None:
        now[0] += 0.01 * len(images)

    monkeypatch.setattr(reading, "vary", slow)
    monkeypatch.setattr(budget, "clock", lambda: now[0])
    images = open_dataset(folder, fractions=None)
    cost = ReadingCost(images, others=0, channels=1, to_read=0.1, to_evaluate=0.1, workers=2)
    before = torch.random.get_rng_state()
    assert cost.of_each((20, 30), "trivial") == pytest.approx(0.005)  # pads and crops what is held
    assert cost.of_each((80, 80), "trivial") == pytest.approx(0.105)  # crops what it reads
    assert torch.equal(torch.random.get_rng_state(), before)


def test_of_large_photographs_fewer_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_dataset(folder, fractions=None)
    assert sample_size(images, 1000) == 1000
    for pixels, most in ((10 * 600, 64), (200 * 600, 200), (2000 * 600, 1000)):
        monkeypatch.setattr(reading, "_SAMPLED_PIXELS", pixels)
        assert sample_size(images, 1000) == most
