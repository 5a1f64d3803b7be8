"""The speed table: fair turns, equal outputs before any timing, and ratios that follow from the times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.classifiers import make_classifier

from skipnets.cli import main
from skipnets.deploy import benchmark, timing
from skipnets.deploy.benchmark import compare_speeds
from skipnets.deploy.export import Export
from skipnets.deploy.timing import Candidate
from skipnets.errors import UserError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(benchmark, "_sgemm_rate", lambda threads: 1e9)


@pytest.mark.usefixtures("quick")
def test_every_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_classifier().save(tmp_path / "model.safetensors")
    words = [
        tmp_path,
        "--batch-size",
        2,
        "--seconds",
        0,
        "--no-compiled",
        "--threads",
        1,
        "--output",
        tmp_path / "s.json",
    ]
    assert main(["benchmark", *map(str, words)]) == 0
    table = json.loads((tmp_path / "s.json").read_text())
    rows = {row["candidate"]: row for row in table["rows"]}
    assert set(rows) - {"skipnets, native engine"} == {
        "torchvision, eager",
        "torchvision, eager, channels_last",
        "torchvision, ONNX Runtime",
        "torchvision, OpenVINO",
        "torchvision, OpenVINO int8",
        "skipnets, rewritten eager",
        "skipnets, ONNX Runtime",
        "skipnets, OpenVINO",
        "skipnets, OpenVINO int8",
    }
    baselines = [row for row in rows.values() if row["baseline"] and row["precision"] == "fp32"]
    fastest = np.array(min(baselines, key=lambda row: row["seconds"])["calls"])
    for row in rows.values():
        assert row["batch_size"] == 2
        assert row["seconds"] == pytest.approx(np.median(row["calls"]))
        assert row["ratio"] == pytest.approx(np.median(np.array(row["calls"]) / fastest))
        assert row["limit_share"] == pytest.approx(2 * table["macs"] / 1e9 / row["seconds"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows)
    assert "MACs" in shown


@pytest.mark.usefixtures("quick")
def test_an_export_is_timed_alone(exports: dict[str, Export]) -> None:
    table = compare_speeds(exports["onnx"].path, batch_sizes=[1, 3], seconds=0)
    assert [(row.candidate, row.batch_size, row.ratio) for row in table.rows] == [
        (f"{exports['onnx'].path}, onnxruntime", batch, None) for batch in (1, 3)
    ]
    name = table.rows[0].candidate
    assert table.ratio(name, name, 3) == 1
    with pytest.raises(KeyError):
        table.ratio(name, "nobody", 3)


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
def test_nothing_is_timed_that_computes_something_else(wrong: float) -> None:
    right = Candidate(name="right", predict=lambda batch: np.ones((1, 2), np.float32))
    other = Candidate(name="other", predict=lambda batch: np.full((1, 2), 1 + wrong, np.float32))
    with pytest.raises(UserError, match="other does not compute what right does"):
        benchmark._require_equal([right, other], np.zeros((1, 3, 4, 4)))


def test_wrong_batch_sizes() -> None:
    with pytest.raises(UserError, match=r"batch_size=\[0\]: must be at least 1"):
        compare_speeds(make_classifier("resnet20"), batch_sizes=[0])
