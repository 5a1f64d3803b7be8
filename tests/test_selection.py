"""Sets, intervals and rejected images of a calibrated classifier, and who is refused them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from tests.helpers.classifiers import make_reader

from skipnets.errors import UserError
from skipnets.scaling import TargetScale
from skipnets.selection import Selection, check_calibrated, needs_features
from skipnets.uncertainty import CalibrationScores, OutlierDetector, Uncertainty

LOGITS = np.array([[4, 0, 0], [1, 1, 0], [0, 2, 1.9]], np.float32)
SCORES = CalibrationScores.of(np.linspace(0, 1, 11))
ENERGY = OutlierDetector(score="energy", calibration=CalibrationScores.of(np.linspace(-6, 0, 9)))


def uncertainty(**fields: Any) -> Uncertainty:
    return Uncertainty(**({"temperature": 1.0, "tta": "none", "sets": SCORES, "outliers": ENERGY} | fields))


def test_what_is_not_asked_for_is_not_there() -> None:
    found = Selection.of(make_reader(), LOGITS, None, coverage=None, reject=None)
    assert vars(found) == vars(Selection())


def test_sets_hold_the_classes_that_are_probable_enough() -> None:
    classifier = make_reader(uncertainty=uncertainty(), temperature=2.0)
    found = Selection.of(classifier, LOGITS, None, coverage=0.5, reject=None)
    wanted = 1 - softmax(LOGITS / 2, axis=1) <= 0.5  # the sixth of eleven scores
    wanted[np.arange(3), LOGITS.argmax(1)] = True
    np.testing.assert_array_equal(found.sets, wanted)
    assert (found.coverage, found.intervals, found.p_values) == (0.5, None, None)


def test_sets_of_labels_may_be_empty() -> None:
    classifier = make_reader(uncertainty=uncertainty(), task="multi-label")
    logits = LOGITS - np.array([[1], [2], [1]], np.float32)
    found = Selection.of(classifier, logits, None, coverage=0.5, reject=None)
    assert found.sets is not None
    np.testing.assert_array_equal(found.sets, 1 - expit(logits) <= 0.5)
    assert found.sets.sum(1).tolist() == [1, 0, 2]


def test_intervals_are_in_the_units_of_the_targets_and_end_at_the_grades() -> None:
    scales = [
        TargetScale(mean=10, std=2),
        TargetScale(mean=0, std=1),
        TargetScale(mean=3, std=1, grades=(1, 5)),
    ]
    calibrated = uncertainty(temperature=1.0, sets=None, intervals=(SCORES,) * 3)
    classifier = make_reader(uncertainty=calibrated, task="regression", scales=scales)
    found = Selection.of(classifier, LOGITS, None, coverage=0.5, reject=None)
    assert found.intervals is not None
    np.testing.assert_allclose(found.intervals[0], [[17.5, 18.5], [-0.5, 0.5], [2.5, 3.5]])
    np.testing.assert_allclose(found.intervals[2, 2], [4.5, 5])


def test_unusual_images_are_rejected_and_what_is_not_finite_does_no_harm() -> None:
    classifier = make_reader(uncertainty=uncertainty())
    logits = np.concatenate([LOGITS, np.full((1, 3), np.nan, np.float32)])
    found = Selection.of(classifier, logits, None, coverage=None, reject=0.1)
    energies = -np.log(np.exp(LOGITS).sum(1))
    wanted = [(1 + (np.linspace(-6, 0, 9) >= energy).sum()) / 10 for energy in energies]
    assert found.p_values is not None
    np.testing.assert_allclose(found.p_values[:3], wanted)
    assert found.rejected is not None
    assert found.rejected.tolist()[:3] == [value <= 0.1 for value in wanted]


def test_only_neighbors_need_features() -> None:
    neighbors = OutlierDetector(score="knn", calibration=SCORES, reference=np.eye(2, dtype=np.float16))
    for classifier, wanted in (
        (make_reader(), False),
        (make_reader(uncertainty=uncertainty(outliers=None)), False),
        (make_reader(uncertainty=uncertainty()), False),
        (make_reader(uncertainty=uncertainty(outliers=neighbors)), True),
    ):
        assert needs_features(classifier, 0.1) is wanted
        assert not needs_features(classifier, None)


@pytest.mark.parametrize(
    ("fields", "asked", "message"),
    [
        ({}, {"coverage": 0.5}, r"^coverage=0\.5: needs a calibrated model; first .* calibrate MODEL$"),
        ({"export": {}}, {"reject": 0.5}, "first skipnets calibrate MODEL, and export it again$"),
        ({"uncertainty": uncertainty(tta="flip")}, {"reject": 0.5}, "calibrated with tta=flip, not none"),
        ({"uncertainty": uncertainty(), "temperature": 2}, {"coverage": 0.5}, "the temperature was changed"),
        ({"uncertainty": uncertainty(sets=None)}, {"coverage": 0.5}, "calibrated without prediction sets"),
        ({"uncertainty": uncertainty()}, {"coverage": 0.99}, "needs at least 99 calibration images"),
        (
            {"uncertainty": uncertainty(outliers=None)},
            {"reject": 0.5},
            "calibrated without what outliers are compared with",
        ),
        ({"uncertainty": uncertainty()}, {"reject": 1.5}, "must be above 0 and below 1"),
    ],
)
def test_what_a_classifier_cannot_give_is_refused(
    fields: dict[str, Any], asked: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_calibrated(make_reader(**fields), **asked)


def test_what_a_classifier_can_give_is_not_refused() -> None:
    check_calibrated(make_reader())
    check_calibrated(make_reader(uncertainty=uncertainty()), coverage=0.5, reject=0.2)
    # Unusual images are recognized by the logits as they are.
    check_calibrated(make_reader(uncertainty=uncertainty(), temperature=2), reject=0.2)
