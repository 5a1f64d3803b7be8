"""Swapped labels are found, by predictions that were made out of fold."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from skipnets.report.label_errors import calibrated, cohen_kappa, find_label_errors


@pytest.fixture(scope="module")
def swapped() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits of which 3% have another label: true labels, given ones, out-of-fold probabilities."""
    images, true = load_digits(return_X_y=True)
    generator = np.random.default_rng(1)
    wrong = generator.choice(len(true), round(0.03 * len(true)), replace=False)
    given = true.copy()
    given[wrong] = (true[wrong] + generator.integers(1, 10, len(wrong))) % 10
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(
        Nystroem(gamma=0.05, n_components=300, random_state=0), LogisticRegression(max_iter=200, C=10)
    )
    return true, given, cross_val_predict(model, images / 16, given, cv=folds, method="predict_proba")


def test_nine_tenths_of_the_least_probable_labels_are_wrong(
    swapped: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    true, given, probabilities = swapped
    errors = find_label_errors(given, calibrated(given, probabilities))
    most = round(0.03 * len(true))
    first = [error.image for error in errors[:most]]
    assert (true[first] != given[first]).mean() >= 0.9
    order = np.argsort(calibrated(given, probabilities)[np.arange(len(given)), given], kind="stable")[:most]
    assert (true[order] != given[order]).mean() >= 0.9
    right = [true[error.image] == error.suggested for error in errors]
    assert np.mean(right) >= 0.9
    assert len(errors) >= 0.75 * (true != given).sum()
    # What is corrected without asking.
    certain = [error for error in errors if error.of_suggested >= 0.95]
    assert len(certain) >= 15
    assert all(true[error.image] == error.suggested for error in certain)


def test_in_the_order_of_the_labels_probability(swapped: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, given, probabilities = swapped
    errors = find_label_errors(given, probabilities)
    order = [error.of_label for error in errors]
    assert order == sorted(order)
    assert all(error.suggested != given[error.image] for error in errors)
    assert all(probabilities[error.image].argmax() == error.suggested for error in errors)


def test_an_overconfident_model_is_calibrated_first() -> None:
    """Three in ten of its predictions are wrong, and all claim to be certain: then none is."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 100)
    predicted = np.where(generator.random(500) < 0.3, generator.integers(0, 5, 500), labels)
    probabilities = np.full((500, 5), 1e-6)
    probabilities[np.arange(500), predicted] = 1 - 4e-6
    assert all(
        error.of_suggested < 0.9 for error in find_label_errors(labels, calibrated(labels, probabilities))
    )


def test_nothing_to_find() -> None:
    labels = np.repeat([0, 1], 20)
    sure = np.where(np.arange(2) == labels[:, None], 0.99, 0.01)
    assert find_label_errors(labels, sure) == []
    assert find_label_errors(labels[:0], sure[:0]) == []
    # A class that no image has, and one with a single image.
    one = np.array([0, 0, 0, 2])
    assert find_label_errors(one, np.full((4, 4), 0.25)) == []


def test_a_class_of_one_image_draws_no_warning() -> None:
    labels = np.repeat([0, 1, 2], [4, 4, 1])
    assert find_label_errors(labels, np.eye(3)[labels] * 0.97 + 0.01) == []


def test_warnings_of_cleanlab_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(labels: np.ndarray, *_: object, **__: object) -> np.ndarray:
        warnings.warn("May not flag all label issues in class: 2, it has too few examples", stacklevel=2)
        warnings.warn("something else", stacklevel=2)
        return labels[:0]

    monkeypatch.setattr("cleanlab.filter.find_label_issues", find)
    with pytest.warns(UserWarning, match="something else") as heard:
        find_label_errors(np.repeat([0, 1], 4), np.full((8, 2), 0.5))
    assert [str(each.message) for each in heard] == ["something else"]


def test_kappa_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, guesses = generator.integers(0, 4, (2, 90))
    predicted = np.where(generator.random(90) < 0.6, labels, guesses)
    assert cohen_kappa(labels, predicted, 5) == pytest.approx(cohen_kappa_score(labels, predicted))
    assert cohen_kappa(np.zeros(9, np.int64), np.zeros(9, np.int64), 2) == 0
