"""`skipnets ensemble`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import skipnets


def test_runs_become_one_model_that_the_other_commands_take(
    runs: dict[str, Path], photos: Path, tmp_path: Path, run
) -> None:
    out = tmp_path / "both"
    result = run("ensemble", *runs.values(), "--out", out)
    assert result.status == 0, result.err
    for expected in ("2: densenet_bc40_k12, resnet20", "bright side, dark", str(out / "model.safetensors")):
        assert expected in result.out
    assert "note" not in result.out  # both runs have the same splits
    image = photos / "dark" / "00.png"
    members = [skipnets.load(folder, runtime="torch") for folder in runs.values()]
    expected = np.mean([each.probabilities(each.preprocess([image]))[0] for each in members], axis=0)
    line = run("predict", out, image).out.strip().split("\t")
    assert line[1:3] == [["bright side", "dark"][expected.argmax()], f"{expected.max():.4f}"]
    evaluated = json.loads(run("evaluate", out, "--json").out)
    single = json.loads(run("evaluate", runs["resnet"], "--json").out)
    assert (evaluated["images"], evaluated["warnings"]) == (single["images"], single["warnings"])
    about = " ".join(run("info", out).out.split())
    assert "ensemble of 2 networks" in about
    assert "network 2 resnet20, " in about
    assert run("calibrate", out).status == 0
    result = run("report", out)
    assert result.status == 2
    assert f"{out} was not evaluated yet: skipnets evaluate {out} --output {out}" in result.err
    assert run("evaluate", out, "--output", out).status == 0
    compared = json.loads(run("compare", out, runs["resnet"], "--json", "--resamples", 20).out)
    assert {row["run"] for row in compared["differences"]} == {runs["resnet"].name}


@pytest.mark.slow
def test_its_report_names_the_networks(runs: dict[str, Path], tmp_path: Path, run) -> None:
    out = tmp_path / "both"
    assert run("ensemble", *runs.values(), "--out", out).status == 0
    assert run("evaluate", out, "--output", out).status == 0
    assert run("report", out).status == 0
    page = (out / "report.html").read_text()
    for expected in (
        "<title>densenet_bc40_k12 + resnet20 on photos",
        "ensemble of 2 networks, ",
        f"resnet20 of {runs['resnet'] / 'model.safetensors'}",
    ):
        assert expected in page
    assert "run.yaml" not in page


def test_json_says_what_was_made(runs: dict[str, Path], tmp_path: Path, run) -> None:
    out = tmp_path / "both"
    made = json.loads(run("ensemble", *runs.values(), "--out", out, "--json").out)
    assert made["networks"] == ["densenet_bc40_k12", "resnet20"]
    assert made["written"] == [str(out / "model.safetensors")]
    assert (sum(made["images"].values()), made["notes"]) == (40, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "skipnets: MODELS must be given, as in: skipnets ensemble runs/densenet runs/resnet --out",
        ),
        (["{resnet}", "--out", "x"], "skipnets: MODELS must be at least two to average, not 1"),
        (["{resnet}", "{densenet}"], "skipnets: --out must be given, as in:"),
        (
            ["{resnet}", "{densenet}", "--out", "{resnet}"],
            "skipnets: --out={resnet}: already exists; remove it",
        ),
        (["{resnet}", "nowhere", "--out", "x"], "skipnets: nowhere does not exist: name a model file"),
        (
            ["{resnet}", "{resnet}", "--out", "x"],
            "skipnets: {resnet}: must be given once, as its network would",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str],
    message: str,
    runs: dict[str, Path],
    tmp_path: Path,
    run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("ensemble", *(word.format(**runs) for word in words))
    assert result.status == 2
    assert result.err.startswith(message.format(**runs)), result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["summary", "diagram", "plan", "benchmark", "reuse"])
def test_what_is_of_one_network_says_so(command: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    out = tmp_path / "both"
    assert run("ensemble", *runs.values(), "--out", out).status == 0
    words = {"diagram": ["--output", tmp_path / "a.svg"], "reuse": ["--output", tmp_path / "a.png"]}
    result = run(command, out, *words.get(command, []))
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1
    assert "ensemble of" in result.err
