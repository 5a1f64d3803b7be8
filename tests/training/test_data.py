"""Over all processes every image is shown once, whatever their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skipnets.data.sources import open_dataset
from skipnets.training import TrainConfig
from skipnets.training.data import ImageDataModule
from skipnets.training.prepare import prepare


@pytest.fixture
def of_process(tiny: Callable[..., TrainConfig]) -> Callable[..., ImageDataModule]:
    """Makes what one of several processes sees."""

    def make(rank: int, world_size: int, shares: int | None = None, **changes: Any) -> ImageDataModule:
        config = tiny(**changes)
        dataset = open_dataset(config.data, splits=config.splits)
        prepared = prepare(config, dataset)
        module = ImageDataModule(
            dataset.split("train"),
            dataset.split("val"),
            prepared.preprocessing,
            prepared.config,
            shares=shares or world_size,
        )
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        return module

    return make


def positions(loader: Any) -> list[int]:
    return [int(position) for _, _, batch in loader for position in batch]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_validation_shows_every_image_once(world_size: int, of_process: Callable[..., Any]) -> None:
    seen: list[str] = []
    for rank in range(world_size):
        module = of_process(rank, world_size)
        share = module.val.select(np.arange(rank, len(module.val), world_size))
        seen += [share.names[position] for position in positions(module.val_dataloader())]
    assert sorted(seen) == sorted(of_process(0, 1).val.names)


def test_training_shares_are_disjoint_and_equally_long(of_process: Callable[..., Any]) -> None:
    shares = [positions(of_process(rank, 2).train_dataloader()) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    assert not set(shares[0]) & set(shares[1])
    assert len(set(shares[0] + shares[1])) == len(shares[0] + shares[1])


@pytest.mark.parametrize("augmentation", ["trivial", "resized-crop"])
def test_fewer_processes_take_the_same_batches(augmentation: str, of_process: Callable[..., Any]) -> None:
    """Equal positions and pixels in each step, in the order of the shares: for 4, 2 and 1 processes."""

    def steps(processes: int) -> list[list[tuple[list[int], bytes]]]:
        each = 4 // processes
        loaders = [
            of_process(rank, processes, 4, batch_size=4, augmentation=augmentation).train_dataloader()
            for rank in range(processes)
        ]
        batches = [
            [(index.tolist(), images.numpy().tobytes()) for images, _, index in loader] for loader in loaders
        ]
        assert {len(of_loader) for of_loader in batches} == {len(loaders[0])}
        return [
            [batch for of_loader in batches for batch in of_loader[first : first + each]]
            for first in range(0, len(loaders[0]), each)
        ]

    expected = steps(4)
    assert len(expected) == 5  # of 4, 4, 4, 4 and 5 images for each share
    seen = [position for step in expected for index, _ in step for position in index]
    assert sorted(seen) == list(range(84))
    assert steps(2) == expected
    assert steps(1) == expected


def test_what_cannot_be_decoded_is_remembered_over_all_loaders(
    of_process: Callable[..., Any], tmp_path: Path
) -> None:
    from PIL import Image

    for label in ("a", "b"):
        for index in range(20):
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), index).save(tmp_path / "data" / label / f"{index}.png")
    module = of_process(0, 1, data=tmp_path / "data")
    broken = {module.train.names[3], module.val.names[0]}
    for name in broken:
        (tmp_path / "data" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    assert module.failures == {}
    train, val = positions(module.train_dataloader()), positions(module.val_dataloader())
    assert set(module.failures) == broken
    assert 3 not in train
    assert 0 not in val
