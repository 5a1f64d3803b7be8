"""The commands do what they say on good input."""

from __future__ import annotations

import csv
import io
import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tests.helpers.commands import QUICK, write_image

import skipnets
from skipnets.cli import COMMANDS


def test_help_is_there_within_half_a_second() -> None:
    def seconds() -> float:
        """Of processor time, which other work on the machine does not lengthen."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "skipnets", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(seconds() for _ in range(5)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, skipnets.cli as c; c.main(['--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "numpy", "PIL", "pytorch_lightning", "matplotlib", "pydantic"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_shows_an_example(command: str, run) -> None:
    result = run(command, "--help")
    assert result.status == 0
    usage, *rest = result.out.splitlines()
    assert usage.startswith(f"Usage: skipnets {command}")
    assert any(line.lstrip().startswith(f"skipnets {command} ") for line in rest)


def test_the_version_is_the_package_s(run) -> None:
    assert run("--version").out.strip() == skipnets.__version__


def test_models_are_listed_with_their_sizes(run) -> None:
    lines = run("models", "densenet1*").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == skipnets.list_models("densenet1*")
    assert "7,978,856" in lines[1]
    assert json.loads(run("models", "resnet18", "--json").out)["resnet18"]["parameters"] == 11_689_512


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


def test_training_ends_with_the_figures_and_where_the_model_is(photos: Path, tmp_path: Path, run) -> None:
    result = run("train", photos, "--out", tmp_path / "run", *QUICK)
    assert result.status == 0
    assert re.search(r"accuracy +\d+\.\d+%", result.out)
    assert str(tmp_path / "run/model.safetensors") in result.out
    assert "epoch 4/4" in result.err


def test_info_tells_what_the_file_knows(trained: Path, run) -> None:
    result = run("info", trained)
    for expected in (
        "densenet_bc40_k12",
        "bright side, dark",
        "growth_rate 4",
        "size",
        "mean",
        "recipe",
        "scores",
    ):
        assert expected in result.out
    about = json.loads(run("info", trained / "model.safetensors", "--json").out)
    assert about["classes"] == ["bright side", "dark"]
    assert about["parameters"] == sum(p.numel() for p in skipnets.load(trained).model.parameters())


def test_evaluation_is_training_s_own_and_prints_json(trained: Path, tmp_path: Path, run) -> None:
    result = run(
        "evaluate", trained, "--json", "--output", tmp_path / "e", "--predictions", tmp_path / "p.csv"
    )
    assert result.status == 0
    assert json.loads(result.out) == json.loads((trained / "evaluation.json").read_text())
    assert json.loads((tmp_path / "e/evaluation.json").read_text()) == json.loads(result.out)
    assert len((tmp_path / "p.csv").read_text().splitlines()) - 1 == json.loads(result.out)["images"]
    assert "were trained on" in run("evaluate", trained, "--split", "train").out


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_as_a_file_keep_the_order_of_the_input(
    suffix: str, trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    paths = [photos / "dark/03.png", photos / "bright side/01.png", photos / "dark/00.png"]
    output = tmp_path / f"out.{suffix}"
    result = run("predict", trained, *paths, "--output", output, "--top-k", 2)
    assert (result.status, result.out) == (0, "")
    if suffix == "csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    expected = skipnets.load(trained).predict(paths, top_k=2)
    assert [row["label_2"] for row in rows] == [prediction.ranking[1][0] for prediction in expected]
    assert [float(row["probability"]) for row in rows] == pytest.approx([p.probability for p in expected])


def test_folders_patterns_and_standard_input_are_expanded(
    trained: Path, photos: Path, run, monkeypatch
) -> None:
    def predicted(*words: object) -> list[str]:
        return [line.split("\t")[0] for line in run("predict", trained, *words).out.splitlines()]

    dark = sorted(map(str, (photos / "dark").iterdir()))
    assert predicted(photos / "dark") == dark
    assert predicted(photos / "dark/0*.png") == dark[:10]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(dark[:3]) + "\n"))
    assert predicted("-", photos / "bright side/05.png") == [*dark[:3], str(photos / "bright side/05.png")]


def test_an_image_that_fails_is_listed_and_stops_nothing(
    trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    result = run("predict", trained, tmp_path / "broken.jpg", photos / "dark/00.png")
    assert result.status == 1
    assert result.out.splitlines()[0].split("\t") == [str(tmp_path / "broken.jpg"), "failed"]
    assert result.out.splitlines()[1].startswith(f"{photos / 'dark/00.png'}\t")
    assert "1 of 2 images failed" in result.err
    assert "broken.jpg" in result.err


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


def test_python_m_runs_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "skipnets", "models", "resnet18"], capture_output=True, text=True
    )
    assert (result.returncode, "resnet18" in result.stdout) == (0, True)
