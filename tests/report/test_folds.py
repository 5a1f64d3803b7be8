"""The report of a run with folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from tests.helpers.runs import make_folds_run, write_images

from skipnets.classifier import load
from skipnets.report import write_report
from skipnets.report.folds import FoldClassifiers, fold_section
from skipnets.report.label_results import read_label_results
from skipnets.report.results import read_results
from skipnets.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("folds")
    for split, count in (("train", 10), ("test", 3)):
        write_images(root / "pets" / split, ("ant", "bee"), count)
    return make_folds_run(root / "run", root / "pets")


def test_the_report_tells_of_folds_and_of_the_ensemble(run: Run) -> None:
    text = write_report(run).read_text()
    assert '<section id="folds">' in text
    assert "20 images in 2 folds" in text
    assert "ensemble of 2 resnet20" in text
    assert "The ensemble on the 6 images of the test split" in text
    assert "the predictions are those of several models" in text
    assert "the best on validation data were 1, 2" in text


def test_each_image_is_explained_by_the_model_that_predicted_it(run: Run) -> None:
    classifiers = FoldClassifiers(run, "cpu")
    table = pyarrow.parquet.read_table(run.folder / "predictions.parquet").to_pydict()
    for index in (0, 19):
        fold = run.fold(table["fold"][index])
        expected = load(fold.model, runtime="torch").model.state_dict()
        state = classifiers(index).model.state_dict()
        assert all(np.array_equal(state[name], value) for name, value in expected.items())


def test_calibrating_the_ensemble_does_not_change_the_out_of_fold_results(run: Run, tmp_path: Path) -> None:
    before = read_results(run.folder).probabilities
    ensemble = load(run.model)
    ensemble.temperature = 3.0
    ensemble.save(run.model)
    np.testing.assert_array_equal(read_results(run.folder).probabilities, before)


def test_a_run_without_folds_has_no_such_section(run: Run) -> None:
    assert fold_section(run.folds[0], run.folds[0].scores) is None


def test_folds_of_several_labels_are_told_with_each_label_at_its_folds_threshold(
    label_folds_run: Run, tmp_path: Path
) -> None:
    text = write_report(label_folds_run, tmp_path / "report.html", device="cpu").read_text()
    assert "60 images in 2 folds" in text
    assert "95% interval of mean AUROC" in text
    assert "The ensemble on the 20 images of the test split, which no fold has seen: <b>mean AUROC" in text
    sensitivity = label_folds_run.scores["macro"]["sensitivity"]["value"]
    assert f"<strong>{100 * sensitivity:.2f}%" in text
    results = read_label_results(label_folds_run.folder)
    fold_of = pyarrow.parquet.read_table(label_folds_run.predictions)["fold"].to_pylist()
    for index in (0, 30):
        fold = load(label_folds_run.fold(fold_of[index]), device="cpu")
        assert results.limits[index] == pytest.approx(fold.thresholds)


def test_folds_of_numbers_are_told(number_folds_run: Run, tmp_path: Path) -> None:
    text = write_report(number_folds_run, tmp_path / "report.html", device="cpu").read_text()
    assert "44 images in 2 folds" in text
    assert "Their ensemble, which averages their numbers" in text
    assert "<th>R² of radius mm</th>" in text
    spread = number_folds_run.scores["between_folds"]
    assert f">{spread[1]['r2']['mean']:.3f}</td>" in text
    assert (
        "The ensemble on the 16 images of the test split, which no fold has seen: <b>MAE of radius mm" in text
    )
    assert "Mean absolute error on validation images" in text
