"""Every figure against scikit-learn, or a closed form, or a slow obvious version."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skipnets.evaluation.metrics import measure
from skipnets.probabilities import softmax


def answers(
    seed: int, count: int, classes: int, present: int, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that lean to the right class, labels from the first `present` classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, present, count)
    logits = rng.normal(size=(count, classes)) + scale * np.eye(classes)[labels] * rng.random((count, 1))
    return logits.astype(np.float32), labels.astype(np.int64)


def obvious_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    error = 0.0
    for low in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if low < row.max() * 15 <= low + 1
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += len(inside) / len(labels) * abs(confidence - right)
    return error


cases = st.tuples(
    st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 9), st.integers(1, 9), st.floats(0.1, 30)
)


@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_metrics_equal_scikit_learns(case: tuple[int, int, int, int, float]) -> None:
    seed, count, classes, present, scale = case
    logits, labels = answers(seed, count, classes, min(present, classes), scale)
    metrics = measure(logits, labels)
    probabilities, every = softmax(logits), range(classes)
    predicted = probabilities.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a class is absent
        precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=np.nan
        )
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert metrics.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics.balanced_accuracy == pytest.approx(balanced)
    np.testing.assert_array_equal(
        metrics.confusion, sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    )
    np.testing.assert_array_equal(metrics.support, support)
    np.testing.assert_allclose(metrics.precision, precision)
    # scikit-learn calls the recall of an absent class nan too, but its F1 0 where it is predicted.
    np.testing.assert_allclose(metrics.recall, recall)
    np.testing.assert_allclose(metrics.f1, f1)
    assert metrics.macro_f1 == pytest.approx(f1[support > 0].mean())
    assert metrics.nll == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=every), rel=1e-5
    )
    assert metrics.ece == pytest.approx(obvious_calibration_error(probabilities, labels), abs=2e-6)
    for index in every:
        if 0 < support[index] < count:
            expected = sklearn.metrics.roc_auc_score(labels == index, probabilities[:, index])
            assert metrics.auroc[index] == pytest.approx(expected, abs=1e-6)
        else:
            assert math.isnan(metrics.auroc[index])
    if classes > 5:
        right = (np.argsort(-probabilities, axis=1)[:, :5] == labels[:, None]).any(1)
        assert metrics.top5 == pytest.approx(right.mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=every)
        assert metrics.top5 == pytest.approx(expected)
    else:
        assert metrics.top5 is None


def test_confidence_of_exactly_one_shares_the_last_bin() -> None:
    # Half sure (1 - 1e-3), half certain: one bin of accuracy 1/2, not two bins of accuracies 1 and 0.
    logits = np.array([[math.log(999), 0], [200, 0]] * 10, np.float32)
    labels = np.array([0, 1] * 10)
    assert measure(logits, labels).ece == pytest.approx(0.9995 - 0.5, abs=1e-6)


def test_large_logits_stay_finite() -> None:
    metrics = measure(np.array([[1000, 0], [0, 1000]], np.float32), np.array([0, 0]))
    assert metrics.nll == pytest.approx(500)
    assert metrics.ece == pytest.approx(0.5)


def test_perfect_predictions() -> None:
    metrics = measure(np.eye(7, dtype=np.float32)[np.arange(70) % 7] * 100, np.arange(70) % 7)
    assert (metrics.accuracy, metrics.balanced_accuracy, metrics.top5, metrics.macro_auroc) == (1, 1, 1, 1)
    assert metrics.nll == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(metrics.confusion, 10 * np.eye(7))


def test_one_class_alone_leaves_ranking_undefined() -> None:
    metrics = measure(np.zeros((3, 2), np.float32), np.array([1, 1, 1]))
    assert np.isnan(metrics.auroc).all()
    assert math.isnan(metrics.macro_auroc)
