"""`skipnets train`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from tests.helpers.commands import QUICK, write_image


def test_training_leaves_the_whole_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "run.yaml",
        "environment.json",
        "splits.csv",
        "model.safetensors",
        "checkpoints",
        "metrics.csv",
        "tensorboard",
        "curves.png",
        "confusion.png",
        "evaluation.json",
        "predictions.parquet",
    }
    assert not [name for name in names if "tmp" in name]


def test_a_run_s_yaml_repeats_it_and_options_go_before_it(trained: Path, tmp_path: Path, run) -> None:
    same = run("train", "--config", trained / "run.yaml", "--out", tmp_path / "same")
    assert same.status == 0
    assert (tmp_path / "same/predictions.parquet").read_bytes() == (
        trained / "predictions.parquet"
    ).read_bytes()
    other = run(
        "train", "--config", trained / "run.yaml", "--out", tmp_path / "other", "--seed", 1, "--epochs", 1
    )
    assert other.status == 0
    settings = yaml.safe_load((tmp_path / "other/run.yaml").read_text())
    assert (settings["seed"], settings["epochs"]) == (1, 1)
    assert settings["model_options"]["growth_rate"] == 4


def test_training_prints_the_metrics_and_where_the_model_is(photos: Path, tmp_path: Path, run) -> None:
    result = run("train", photos, "--out", tmp_path / "run", *QUICK)
    assert result.status == 0
    assert re.search(r"accuracy +\d+\.\d+%", result.out)
    assert str(tmp_path / "run/model.safetensors") in result.out
    assert "epoch 4/4" in result.err


def test_a_broken_image_does_not_stop_training_or_evaluation(tmp_path: Path, run) -> None:
    for index in range(12):
        write_image(tmp_path / "data/a" / f"{index}.png", 10, index)
        write_image(tmp_path / "data/b" / f"{index}.png", 180, index)
    for index in range(12, 24):
        (tmp_path / "data/a" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run("train", tmp_path / "data", "--out", tmp_path / "run", *QUICK)
    assert result.status == 1
    assert "could not be decoded" in result.err
    assert (tmp_path / "run/model.safetensors").exists()
    again = run("evaluate", tmp_path / "run")
    assert again.status == 1
    assert "images failed" in again.err
