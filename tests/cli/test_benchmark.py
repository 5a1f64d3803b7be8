"""`skipnets benchmark`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers.classifiers import make_classifier

from skipnets.deploy import benchmark as speeds
from skipnets.deploy import timing
from skipnets.deploy.export import Export


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(speeds, "_sgemm_rate", lambda threads: 1e9)


@pytest.mark.usefixtures("quick")
def test_an_export_is_timed_and_every_number_written(exports: dict[str, Export], tmp_path: Path, run) -> None:
    options = ("--batch-size", 1, "--batch-size", 3, "--seconds", 0, "--threads", 1)
    result = run("benchmark", exports["onnx"].path, *options, "--output", tmp_path / "s.json")
    assert result.status == 0
    table = json.loads((tmp_path / "s.json").read_text())
    assert [row["batch_size"] for row in table["rows"]] == [1, 3]
    assert table["size"] == [16, 20]
    for row in table["rows"]:
        [line] = [line for line in result.out.splitlines() if line.split()[:1] == [str(row["batch_size"])]]
        assert row["candidate"] in line
        shown = float(line.split(", onnxruntime")[1].split()[0])
        assert shown == pytest.approx(1000 * row["seconds"], rel=0.06, abs=0.05)
    assert "images of 16×20" in result.out


@pytest.mark.slow
def test_training_steps_are_timed_under_every_execution(tmp_path: Path, run) -> None:
    make_classifier().save(tmp_path / "model.safetensors")
    words = ("benchmark", tmp_path, "--training", "--batch-size", 2, "--threads", 1)
    result = run(*words, "--output", tmp_path / "t.json")
    assert result.status == 0, result.err
    costs = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert result.out.splitlines()[0].startswith("batch")
    assert result.out.splitlines()[-1] == str(tmp_path / "t.json")
    assert {cost["batch_size"] for cost in costs} == {2}
    assert len({cost["execution"] for cost in costs}) == len(costs) > 1
    rows = [line.split() for line in result.out.splitlines()[1:-1]]
    assert [row[1] for row in rows] == [cost["execution"] for cost in costs]
    by_execution = {cost["execution"]: cost["saved_bytes"] for cost in costs}
    assert by_execution["plain"] == max(by_execution.values())
