"""Predictions say what the outputs do, in the terms of their task, and failed images stay in their place."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.classifiers import batch_of, make_reader

from skipnets.data.loading import ImageBatch
from skipnets.predicting import failed_prediction, make_prediction, outputs_with_uncertainty, predictions
from skipnets.prediction import Prediction, RegressionPrediction
from skipnets.scaling import TargetScale
from skipnets.uncertainty import CalibrationScores, OutlierDetector, Uncertainty

OUTPUTS = np.array([0.2, 0.5, 0.3])
NUMBERS = {"task": "regression", "scales": [TargetScale(mean=0, std=1)] * 3}


def test_one_label_is_the_most_probable_class() -> None:
    found = make_prediction(make_reader(), "a.png", OUTPUTS, 2)
    ranking = (("bee", 0.5), ("cat", 0.3))
    assert found == Prediction(source="a.png", label="bee", probability=0.5, labels=("bee",), ranking=ranking)


def test_classes_of_one_probability_are_in_their_order() -> None:
    found = make_prediction(make_reader(), "a.png", np.array([0.25, 0.5, 0.25]), 9)
    assert [name for name, _ in found.ranking] == ["bee", "ant", "cat"]


def test_several_labels_are_those_that_reach_their_thresholds() -> None:
    classifier = make_reader(task="multi-label", thresholds=(0.2, 0.6, 0.25))
    found = make_prediction(classifier, "a.png", OUTPUTS)
    assert found.labels == ("cat", "ant")
    assert found.ranking == (("bee", 0.5), ("cat", 0.3), ("ant", 0.2))
    assert (found.label, found.probability) == (None, None)


def test_numbers_have_the_names_of_their_targets() -> None:
    found = make_prediction(make_reader(**NUMBERS), "a.png", OUTPUTS)
    values = (("ant", 0.2), ("bee", 0.5), ("cat", 0.3))
    assert found == RegressionPrediction(source="a.png", values=values)


def test_a_failed_image_has_an_error_alone() -> None:
    for classifier, kind in ((make_reader(), Prediction), (make_reader(**NUMBERS), RegressionPrediction)):
        assert failed_prediction(classifier, "a.png", "gone") == kind(source="a.png", error="gone")


def test_images_that_cannot_be_read_or_computed_stay_in_their_place() -> None:
    batches = [
        ImageBatch(
            positions=np.array([0, 2, 3]),
            inputs=batch_of([[2, 1, 0], [np.nan, 0, 0], [0, 0, 3]]),
            failures=[(1, "b.png: no image")],
            names=["a.png", "b.png", "c.png", "d.png"],
        ),
        ImageBatch(positions=np.array([], int), inputs=batch_of([]), failures=[(4, "gone")], names=["e.png"]),
    ]
    found = list(predictions(make_reader(), batches, 1, coverage=None, reject=None))
    assert [each.source for each in found] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert [each.label for each in found] == ["ant", None, None, "cat", None]
    assert found[1].error == "b.png: no image"
    assert str(found[2].error).startswith("c.png: ")
    assert found[4].error == "gone"


def test_what_is_asked_for_besides_comes_as_fields() -> None:
    logits = np.array([[3, 0, 0], [1, 0.9, 0]])
    scores = CalibrationScores.of(np.linspace(0, 1, 11))
    energy = OutlierDetector(score="energy", calibration=CalibrationScores.of(np.linspace(-4, -2, 9)))
    calibrated = Uncertainty(temperature=1, tta="none", sets=scores, outliers=energy)
    rows = outputs_with_uncertainty(
        make_reader(uncertainty=calibrated), batch_of(logits), coverage=0.6, reject=0.2
    )
    exponentials = np.exp(logits)
    for (outputs, _), wanted in zip(rows, exponentials / exponentials.sum(1, keepdims=True), strict=True):
        np.testing.assert_allclose(outputs, wanted, rtol=1e-6)
    fields = [row for _, row in rows]
    # Of eleven scores the eighth is 0.7: a class with a probability of 0.3 is in the set.
    assert [row["prediction_set"] for row in fields] == [("ant",), ("ant", "bee")]
    # Energies of -3.1 and -1.8: the second is higher than those of all nine.
    assert [row["p_value"] for row in fields] == pytest.approx([0.6, 0.1])
    assert [row["rejected"] for row in fields] == [False, True]


def test_intervals_come_with_the_names_of_their_targets() -> None:
    scores = (CalibrationScores.of(np.linspace(0, 1, 11)),) * 3
    calibrated = Uncertainty(temperature=1, tta="none", intervals=scores)
    classifier = make_reader(**NUMBERS, uncertainty=calibrated)
    [(outputs, fields)] = outputs_with_uncertainty(classifier, batch_of([[1, 2, 3]]), coverage=0.5)
    assert outputs.tolist() == [1, 2, 3]
    assert fields == {"intervals": (("ant", 0.5, 1.5), ("bee", 1.5, 2.5), ("cat", 2.5, 3.5))}
