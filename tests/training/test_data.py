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

    def make(rank: int, world_size: int, **changes: Any) -> ImageDataModule:
        config = tiny(**changes)
        dataset = open_dataset(config.data, splits=config.splits)
        prepared = prepare(config, dataset)
        module = ImageDataModule(
            dataset.split("train"), dataset.split("val"), prepared.preprocessing, prepared.config
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
