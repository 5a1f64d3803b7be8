"""What evaluation says of prediction sets and rejection is what predictions give, counted one by one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.helpers.classifiers import make_classifier, make_images

from skipnets.classifier import Classifier, load
from skipnets.data import ImageDataset
from skipnets.errors import UserError
from skipnets.evaluation import Evaluation, MultiLabelEvaluation, calibrate, evaluate
from skipnets.evaluation.evaluating import open_own_images
from skipnets.evaluation.intervals import wilson_interval
from skipnets.evaluation.selective import Selective
from skipnets.tables import as_text
from skipnets.training import Run


@pytest.fixture(scope="module")
def calibrated() -> tuple[Classifier, ImageDataset]:
    classifier = make_classifier()
    images = make_images(classifier, 80, wrong=20)
    calibrate(classifier, images, split="val")
    return classifier, images


def test_coverage_sizes_and_what_is_kept_are_counted(
    calibrated: tuple[Classifier, ImageDataset], tmp_path: Path
) -> None:
    classifier, images = calibrated
    evaluation = evaluate(classifier, images, split="train", coverage=0.8, reject=0.3)
    assert isinstance(evaluation, Evaluation)
    chosen = images.split("train")
    pixels = [chosen.source(index) for index in range(len(chosen))]
    predictions = classifier.predict(pixels, coverage=0.8, reject=0.3)
    covered, sizes, kept, left = [], [], [], []
    for prediction, truth in zip(predictions, chosen.label_names, strict=True):
        assert prediction.prediction_set is not None
        covered.append(truth in prediction.prediction_set)
        sizes.append(len(prediction.prediction_set))
        (left if prediction.rejected else kept).append(prediction.label == truth)
    told = json.loads(json.dumps(evaluation.to_dict()))
    limits = binomtest(sum(covered), len(covered)).proportion_ci(method="wilson")
    assert told["prediction_sets"] == {
        "coverage": 0.8,
        "measured": pytest.approx(np.mean(covered)),
        "interval": pytest.approx([limits.low, limits.high]),
        "mean_size": pytest.approx(np.mean(sizes)),
        "single": pytest.approx(np.mean(np.array(sizes) == 1)),
    }
    rejection = told["rejection"]
    assert rejection["rejected"] == pytest.approx(len(left) / len(chosen))
    assert rejection["kept"] == len(kept)
    assert rejection["accuracy_kept"] == pytest.approx(np.mean(kept))
    assert rejection["accuracy_rejected"] == (pytest.approx(np.mean(left)) if left else None)
    shown = as_text(evaluation.tables())
    assert f"{np.mean(covered):.2%} covered" in shown
    assert "accuracy where kept" in shown
    evaluation.write_predictions(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [set(row["set"].split("|")) for row in rows] == [
        set(prediction.prediction_set or ()) for prediction in predictions
    ]
    plain: dict[str, Any] = evaluate(classifier, images, split="train").to_dict()
    assert not {"prediction_sets", "rejection"} & set(plain)


def test_an_uncalibrated_classifier_is_refused_before_the_work() -> None:
    classifier = make_classifier()
    with pytest.raises(UserError, match=r"^reject=0\.1: needs a calibrated model"):
        evaluate(classifier, make_images(classifier, 4), split="all", reject=0.1)


def test_sets_that_hold_all_labels_have_an_interval_with_a_width() -> None:
    labels = np.array([[1, 0, np.nan]] * 20 + [[np.nan, np.nan, np.nan]], np.float32)
    sets = np.ones((21, 3), bool)
    found = Selective(coverage=0.9, sets=sets).measure(np.ones(21, bool), labels)["prediction_sets"]
    assert found["measured"] == 1
    assert found["interval"] == list(wilson_interval(20, 20))
    patients = np.array([f"p{number // 5}" for number in range(21)])
    grouped = Selective(coverage=0.9, sets=sets).measure(np.ones(21, bool), labels, patients)
    assert grouped["prediction_sets"]["interval"] == pytest.approx(wilson_interval(4, 4))


def test_images_without_a_known_label_are_neither_right_nor_wrong() -> None:
    labels = np.array([[1.0], [0.0], [np.nan], [np.nan]])
    rejected = np.array([False, True, False, True])
    selective = Selective(reject=0.5, rejected=rejected, p_values=np.ones(4))
    found = selective.measure(np.array([False, True, True, True]), labels)["rejection"]
    assert (found["accuracy_kept"], found["accuracy_rejected"]) == (0.0, 1.0)
    assert (found["kept"], found["rejected"]) == (2, 0.5)


def test_of_several_labels_all_must_be_right(label_run: Run) -> None:
    classifier = load(label_run, runtime="torch", device="cpu")
    own = open_own_images(classifier)
    calibrate(classifier, own)
    evaluation = evaluate(classifier, own, split="test", reject=0.4)
    assert isinstance(evaluation, MultiLabelEvaluation)
    test = own.split("test")
    predictions = classifier.predict([test.file(index) for index in range(len(test))], reject=0.4)
    kept = [
        all(
            mark != mark or (name in prediction.labels) == bool(mark)
            for name, mark in zip(test.classes, marks.tolist(), strict=True)
        )
        for prediction, marks in zip(predictions, test.labels, strict=True)
        if not prediction.rejected
    ]
    rejection = evaluation.to_dict()["rejection"]
    assert (rejection["kept"], rejection["accuracy_kept"]) == (len(kept), pytest.approx(np.mean(kept)))
    assert "all labels right where kept" in as_text(evaluation.tables())


def test_of_several_labels_the_share_that_sets_hold_is_counted(label_run: Run, tmp_path: Path) -> None:
    classifier = load(label_run, runtime="torch", device="cpu")
    own = open_own_images(classifier)
    calibrate(classifier, own)
    evaluation = evaluate(classifier, own, split="test", coverage=0.7)
    test = own.split("test")
    predictions = classifier.predict([test.file(index) for index in range(len(test))], coverage=0.7)
    shares, sizes = [], []
    for prediction, marks in zip(predictions, test.labels.tolist(), strict=True):
        assert prediction.prediction_set is not None
        sizes.append(len(prediction.prediction_set))
        present = [name for name, mark in zip(test.classes, marks, strict=True) if mark == 1]
        if present:
            shares.append(np.mean([name in prediction.prediction_set for name in present]))
    told = evaluation.to_dict()["prediction_sets"]
    assert (told["coverage"], told["mean_size"]) == (0.7, pytest.approx(np.mean(sizes)))
    assert told["measured"] == pytest.approx(np.mean(shares))
    assert told["interval"][0] <= told["measured"] <= told["interval"][1]
    assert f"{np.mean(shares):.2%} of an image's labels" in " ".join(as_text(evaluation.tables()).split())
    columns = evaluation.prediction_columns()
    assert [len(text.split("|")) if text else 0 for text in columns["set"]] == sizes
