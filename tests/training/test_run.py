from __future__ import annotations

import json
from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.training.config import TrainConfig
from skipnets.training.run import (
    Row,
    Run,
    claim,
    read_metrics,
    reopen,
    write_config,
    write_environment,
    write_metrics,
    write_skipped,
)


def row(epoch: int, **changes: float) -> Row:
    metrics = {
        "lr": 0.1 / epoch,
        "train_loss": 2 / epoch,
        "val_loss": 2.2 / epoch,
        "val_accuracy": 1 - 0.5 / epoch,
        "val_balanced_accuracy": 1 - 0.6 / epoch,
        "seconds": 1.5,
        "validation_seconds": 0.25,
    }
    return Row(epoch=epoch, **(metrics | changes))


def test_an_output_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    assert claim(tmp_path / "new").folder == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(UserError, match=r"^out: .* is not an empty folder; name a new one$"):
        claim(tmp_path)
    with pytest.raises(UserError, match=r"^out: .* cannot be written: .*other\.txt is not a folder$"):
        claim(tmp_path / "other.txt")
    write_config(Run(tmp_path), TrainConfig(data="digits", out=tmp_path))
    with pytest.raises(UserError, match=r"^out: .* already holds a run; .* skipnets train --resume "):
        claim(tmp_path)


def test_only_an_unfinished_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^resume: .* is not a run folder"):
        reopen(tmp_path)
    write_config(Run(tmp_path), TrainConfig(data="digits", out=tmp_path, seed=5))
    Run(tmp_path).splits.write_text("path,label,split\n")
    assert reopen(tmp_path).config.seed == 5
    Run(tmp_path).evaluation.write_text("{}")
    with pytest.raises(UserError, match=r"^resume: the run in .* is complete"):
        reopen(tmp_path)


def test_metrics_and_back_are_the_same(tmp_path: Path) -> None:
    rows = [row(1), row(2, val_loss=1 / 3)]
    write_metrics(tmp_path / "metrics.csv", rows)
    assert read_metrics(tmp_path / "metrics.csv") == rows
    assert read_metrics(tmp_path / "none.csv") == []


def test_the_environment_records_versions_hardware_and_seed(tmp_path: Path) -> None:
    write_environment(Run(tmp_path), seed=7)
    told = json.loads(Run(tmp_path).environment.read_text())
    assert told["seed"] == 7
    assert {"torch", "pytorch-lightning", "skipnets"} <= set(told["libraries"])
    assert told["threads"] >= 1
    assert told["processor"]


def test_skipped_images_are_listed_only_where_there_are_any(tmp_path: Path) -> None:
    write_skipped(Run(tmp_path), {})
    assert not Run(tmp_path).skipped_file.exists()
    write_skipped(Run(tmp_path), {"b.png": "cut short", "a.png": "not an image"})
    assert Run(tmp_path).skipped_file.read_text().splitlines() == [
        "path,reason",
        "a.png,not an image",
        "b.png,cut short",
    ]
