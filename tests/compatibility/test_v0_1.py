"""Files that version 0.1 wrote still load, and say what they said then.

`v0.1/` holds two small runs (a DenseNet with dropout in its layers, a ResNet with dropout in both places),
the images that they were trained on, the DenseNet's exports, and the logits that version 0.1 computed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skipnets
from skipnets.classifier import Classifier, describe
from skipnets.evaluation import evaluate
from skipnets.report import compare, write_report
from skipnets.report.results import read_results
from skipnets.runtimes.model_file import FORMAT_VERSION
from skipnets.training import read_config, resume, train

RUNS = ("run", "run-resnet")
EXPORTS = ("exports/onnx.onnx", "exports/openvino", "exports/pt2.pt2")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: run.yaml names the data relative to it."""
    shutil.copytree(Path(__file__).with_name("v0.1"), tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def check_logits(classifier: Classifier, run: str, atol: float = 2e-6) -> None:
    expected = json.loads(Path(run, "expected.json").read_text())
    logits = classifier.logits(classifier.preprocess(expected["names"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=atol)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_a_model_file_computes_what_it_did(run: str, runtime: str, old: Path) -> None:
    if runtime == "native":
        pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    classifier = skipnets.load(run, runtime=runtime, device="cpu")
    check_logits(classifier, run)
    assert classifier.classes == ("cat", "dog")
    assert classifier.provenance["images"] == {"train": 16, "val": 4, "test": 4}


@pytest.mark.parametrize("run", RUNS)
def test_a_model_file_is_written_anew_in_the_present_format(run: str, old: Path) -> None:
    skipnets.load(run, runtime="torch", device="cpu").save("new.safetensors")
    assert describe("new.safetensors")["format_version"] == FORMAT_VERSION
    check_logits(skipnets.load("new.safetensors", runtime="torch", device="cpu"), run)
    again, first = describe("new.safetensors"), describe(run)
    assert (again["architecture"], again["provenance"]) == (first["architecture"], first["provenance"])


@pytest.mark.parametrize("path", EXPORTS)
def test_an_export_predicts_what_it_did(path: str, old: Path) -> None:
    if path == "exports/openvino":
        pytest.importorskip("openvino")
    classifier = skipnets.load(path)
    check_logits(classifier, "run", atol=1e-5)
    assert [prediction.label for prediction in classifier.predict("data/cat/")] == ["cat"] * 12
    assert describe(path)["export"]["check"]["images"] == "the run's validation pictures"


@pytest.mark.parametrize("run", RUNS)
def test_an_evaluation_gives_the_metrics_it_gave(run: str, old: Path) -> None:
    before: dict[str, Any] = json.loads(Path(run, "evaluation.json").read_text())
    after = evaluate(skipnets.load(run, runtime="torch", device="cpu")).to_dict()
    assert after["images"] == before["pictures"] == read_results(run).evaluation["images"]
    for name in ("accuracy", "balanced_accuracy", "nll", "macro_f1", "macro_auroc"):
        assert after[name] == pytest.approx(before[name], abs=1e-6), name
    assert (after["confusion"], after["known"]) == (before["confusion"], before["known"])


def test_runs_are_compared_and_reported(old: Path) -> None:
    shutil.copytree("run", "copy")
    comparison = compare(["run", "copy"], resamples=20)
    assert (comparison.images, comparison.data, comparison.split) == (4, "data", "test")
    for run in RUNS:
        page = write_report(run, f"{run}.html", device="cpu", workers=1).read_text(encoding="utf-8")
        assert "cat/" in page


def test_a_run_is_resumed(old: Path) -> None:
    before = json.loads(Path("run-resnet/evaluation.json").read_text())
    Path("run-resnet/evaluation.json").unlink()
    run = resume(Path("run-resnet"))
    assert [row.epoch for row in run.rows] == [1]
    assert run.scores["nll"] == pytest.approx(before["nll"], abs=1e-6)
    check_logits(skipnets.load("run-resnet", runtime="torch", device="cpu"), "run-resnet")


@pytest.mark.parametrize("run", RUNS)
def test_a_configuration_trains_the_same_network(run: str, old: Path) -> None:
    config = read_config(Path(run, "run.yaml"), out=Path("again"), epochs=1, warmup=0)
    again = train(config)
    assert describe(again.model)["architecture"] == describe(run)["architecture"]
    assert read_config(again.config_file).model_options == again.config.model_options
