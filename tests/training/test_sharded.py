"""Training from shards is training from the files that are in them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.test_trainer import interrupt_at, result

from skipnets.data import open_dataset, write_shards
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.training import TrainConfig, TrainingInterrupted, resume, train

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def shards(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(digits_folder, tmp_path_factory.mktemp("shards") / "digits").index.parent


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_is_the_same_to_the_last_bit(
    workers: int, tiny: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    changes = {"epochs": 1, "augmentation": "trivial", "workers": workers}
    files = train(tiny(out=tmp_path / "files", **changes))
    packed = train(tiny(out=tmp_path / "packed", data=str(shards), **changes))
    assert result(packed) == result(files)
    assert packed.splits.read_text() == files.splits.read_text()  # with sizes and hashes
    again = evaluate(str(packed.model), str(shards), split="test")
    assert again.to_dict()["accuracy"] == packed.scores["accuracy"]
    assert evaluate(str(packed.model), split="test").to_dict()["images"] == 18  # finds its data by itself


@pytest.mark.slow
def test_folds_are_those_of_the_files(tiny: MakeConfig, shards: Path, tmp_path: Path) -> None:
    changes = {"epochs": 1, "folds": 2}
    files = train(tiny(out=tmp_path / "files", **changes))
    packed = train(tiny(out=tmp_path / "packed", data=str(shards), **changes))
    assert packed.splits.read_text() == files.splits.read_text()
    assert packed.scores["accuracy"] == files.scores["accuracy"]


def test_a_shard_that_was_replaced_is_named_when_the_run_goes_on(
    tiny: MakeConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    config = tiny(data=str(folder), epochs=2)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(config)
    shard = folder / "images-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=r"images-00000\.tar: has [\d,]+ bytes, where index\.json says [\d,]+"
    ):
        resume(config.out)
    shard.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(
        UserError, match=r"^resume: 120 of 120 images .* not those .*: \S+\.png in images-00000\.tar"
    ):
        resume(config.out)
    # Other shards with an index of their own: of the same names, but the images are others.
    other = tmp_path / "other"
    for index, path in enumerate(sorted(p for p in open_dataset(folder).names)):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(b"%d" % index)
    shutil.rmtree(folder)
    write_shards(other, folder)
    with pytest.raises(UserError, match=r"^resume: 120 of 120 images .* in images-00000\.tar"):
        resume(config.out)
    shutil.rmtree(folder)
    shutil.copytree(shards, folder)
    whole_run = train(dataclasses.replace(config, data=str(shards), out=tmp_path / "whole"))
    assert result(resume(config.out)) == result(whole_run)
    assert json.loads(whole_run.evaluation.read_text())["images"] == 18
