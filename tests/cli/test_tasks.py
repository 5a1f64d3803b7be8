"""Commands on runs of several labels an image, and of numbers: what each gives is what Python gives."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.commands import Result
from tests.helpers.disks import TARGETS
from tests.helpers.labels import LABELS

import skipnets
from skipnets.cli import main
from skipnets.training import Run

ASKED = ("--coverage", 0.7, "--reject", 0.3)
RUNS = ("label_run", "number_run")
Command = Callable[..., Result]


@pytest.fixture(scope="module")
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Copies of runs, each calibrated by the command."""
    folders: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in folders:
            source: Run = request.getfixturevalue(name)
            folders[name] = shutil.copytree(source.folder, tmp_path_factory.mktemp("calibrated") / "run")
            assert main(["calibrate", str(folders[name])]) == 0
        return folders[name]

    return of


def image_of(run: Run, name: str = "000.png") -> Path:
    return Path(run.config.data).with_name(name)


def told(run: Command, *words: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = run(*words, "--json")
    assert result.status == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


@pytest.mark.slow
def test_labels_with_sets_and_outliers_are_the_same_from_model_engine_and_export(
    label_run: Run, calibrated: Callable, tmp_path: Path, run: Command
) -> None:
    folder, image = calibrated("label_run"), image_of(label_run)
    [expected] = skipnets.load(folder, runtime="torch", device="cpu").predict(image, coverage=0.7, reject=0.3)
    assert run("export", folder, "--output", tmp_path / "m.onnx").status == 0
    pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    for model, runtime in ((folder, "torch"), (folder, "native"), (tmp_path / "m.onnx", "onnxruntime")):
        [row] = told(run, "predict", model, image, *ASKED, "--runtime", runtime)["predictions"]
        assert row["label"] is None
        assert row["labels"] == list(expected.labels)
        assert row["prediction_set"] == list(expected.prediction_set or ())
        assert row["rejected"] == expected.rejected
        assert dict(row["ranking"]) == pytest.approx(dict(expected.ranking), abs=1e-5)
    line = run("predict", folder, image).out.rstrip("\n").split("\t")
    shares = dict(expected.ranking)
    found = [text for label in expected.labels for text in (label, f"{shares[label]:.4f}")]
    assert line[1:] == (found or ["(none)"])
    run("predict", folder, image, *ASKED, "--output", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        [cells] = csv.DictReader(file)
    assert cells["labels"] == "|".join(expected.labels)
    assert cells["set"] == "|".join(expected.prediction_set or ())
    for label in LABELS:
        assert float(cells[f"p:{label}"]) == pytest.approx(shares[label], abs=1e-6)


@pytest.mark.slow
def test_numbers_with_intervals_are_the_same_from_model_engine_and_export(
    number_run: Run, calibrated: Callable, tmp_path: Path, run: Command
) -> None:
    folder, image = calibrated("number_run"), image_of(number_run)
    [expected] = skipnets.load(folder, runtime="torch", device="cpu").predict(image, coverage=0.7, reject=0.3)
    assert isinstance(expected, skipnets.classifier.RegressionPrediction)
    assert run("export", folder, "--output", tmp_path / "m.onnx").status == 0
    pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    for model, runtime in ((folder, "torch"), (folder, "native"), (tmp_path / "m.onnx", "onnxruntime")):
        [row] = told(run, "predict", model, image, *ASKED, "--runtime", runtime)["predictions"]
        assert dict(row["values"]) == pytest.approx(dict(expected.values), rel=1e-4)
        assert [name for name, *_ in row["intervals"]] == list(TARGETS)
        for (_, *found), (_, *wanted) in zip(row["intervals"], expected.intervals, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4)
        assert row["rejected"] == expected.rejected


@pytest.mark.parametrize("name", RUNS)
def test_views_are_averaged_in_evaluation_and_prediction(
    name: str, request: pytest.FixtureRequest, run: Command
) -> None:
    source: Run = request.getfixturevalue(name)
    classifier = skipnets.load(source.folder, tta="flip")
    plain, flipped = (told(run, "evaluate", source.folder, *more) for more in ((), ("--tta", "flip")))
    expected = skipnets.evaluation.evaluate(classifier).to_dict()
    assert (flipped["tta"], "tta" in plain) == ("flip", False)
    key = "classes" if name == "label_run" else "targets"
    assert flipped[key] == expected[key] != plain[key]
    image = image_of(source)
    [row] = told(run, "predict", source.folder, image, "--tta", "flip")["predictions"]
    [prediction] = classifier.predict(image)
    asked = "ranking" if name == "label_run" else "values"
    assert dict(row[asked]) == pytest.approx(dict(getattr(prediction, asked)), rel=1e-6)


def test_a_map_is_written_for_each_label_and_each_target(
    label_run: Run, number_run: Run, tmp_path: Path, run: Command
) -> None:
    labels = ("--classes", LABELS[0], "--classes", LABELS[2])
    for source, more, count in ((label_run, labels, 2), (number_run, (), len(TARGETS))):
        output = tmp_path / f"{count}{len(more)}.png"
        assert run("explain", source.folder, image_of(source), *more, "--output", output).status == 0
        maps = [np.load(path) for path in output.with_suffix("").glob("*.npy")]
        assert len(maps) == count
        assert all(np.ptp(each) > 0 for each in maps)


def test_runs_are_compared_by_label_and_by_target(
    label_run: Run, number_run: Run, tmp_path: Path, run: Command
) -> None:
    for source, key, names in ((label_run, "label", LABELS), (number_run, "target", TARGETS)):
        other = tmp_path / key
        assert run("evaluate", source.folder, "--tta", "crops", "--output", other).status == 0
        found = told(run, "compare", source.folder, other)
        assert [row[key] for row in found["differences"]] == list(names)
        expected = skipnets.report.compare([source.folder, other]).to_dict()
        assert found["differences"] == json.loads(json.dumps(expected["differences"]))
        assert run("compare", source.folder, other).status == 0


def test_the_nearest_images_are_written_as_table_and_sheet(
    label_run: Run, tmp_path: Path, run: Command
) -> None:
    image = image_of(label_run)
    for name in ("near.csv", "near.html", "near.png"):
        assert run("search", label_run.folder, image.parent, image, "--count", 3, "--output", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    with (tmp_path / "near.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = skipnets.insight.search(label_run.folder, image.parent, query=image, count=3)
    assert [row["path"] for row in rows] == [each.source for each in found.neighbors[0]]
    assert str(image) not in [row["path"] for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_what_is_of_other_tasks_is_refused_in_a_line(
    name: str, request: pytest.FixtureRequest, run: Command
) -> None:
    source: Run = request.getfixturevalue(name)
    several = name == "label_run"
    noun = "multi-label classifier" if several else "regression"
    of_digits = "have one label each" if several else "digits has classes, not numbers to predict"
    for words, message in (
        (("calibrate", source.folder, "--sets", "aps"), f"--sets=aps: must be lac with a {noun}"),
        (("evaluate", source.folder, "digits"), of_digits),
    ):
        refused = run(*words)
        assert (refused.status, refused.err.count("\n")) == (2, 1), refused.err
        assert message in refused.err
