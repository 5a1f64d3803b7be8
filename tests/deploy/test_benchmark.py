"""The speed table: fair turns, equal outputs before any timing, and ratios that follow from the times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.classifiers import make_classifier
from tests.helpers.own_networks import Deciding, TinyNet, se_densenet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skipnets.classifier import Classifier
from skipnets.cli import main
from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy import benchmark, timing
from skipnets.deploy.benchmark import compare_speeds
from skipnets.deploy.export import Export, export_model
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


def own(network: nn.Module) -> Classifier:
    return Classifier.from_model(
        network, classes=["a", "b", "c"], preprocessing=Preprocessing(size=(8, 12), channels=1)
    )


@pytest.mark.usefixtures("quick")
def test_an_own_network_is_its_own_baseline(tmp_path: Path) -> None:
    network = TinyNet(3)
    table = compare_speeds(own(network), batch_sizes=[2], seconds=0, threads=1, compiled=False, int8=False)
    assert {row.candidate: row.baseline for row in table.rows} == {
        "as trained, eager": True,
        "as trained, eager, channels_last": True,
        "skipnets, ONNX Runtime": False,
        "skipnets, OpenVINO": False,
    }
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.empty(1, 1, 8, 12))
    assert 2 * (table.macs or 0) == counter.get_total_flops()
    assert "million MACs" in str(table)
    export = export_model(own(network), tmp_path / "own.onnx")
    (row,) = compare_speeds(export.path, batch_sizes=[1], seconds=0).rows
    assert (row.baseline, row.limit_share) == (False, None)


@pytest.mark.usefixtures("quick")
def test_an_own_network_that_cannot_be_exported_is_timed_in_pytorch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads = torch.get_num_threads()
    table = compare_speeds(
        own(Deciding(3)), batch_sizes=[1], seconds=0, threads=threads + 1, compiled=False, int8=False
    )
    assert torch.get_num_threads() == threads
    assert [row.candidate for row in table.rows] == ["as trained, eager", "as trained, eager, channels_last"]
    assert "ONNX Runtime and OpenVINO are left out: export: Deciding cannot be traced" in caplog.text


def test_a_modified_model_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^the model was modified: features.*; give what makes it"):
        compare_speeds(own(se_densenet(3, 1)), batch_sizes=[1])
