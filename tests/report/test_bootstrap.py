"""Weighted metrics are those of evaluation and scikit-learn; their spread is what the closed form says."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skipnets.evaluation.intervals import auroc_interval, wilson_interval
from skipnets.evaluation.metrics import measure
from skipnets.probabilities import softmax
from skipnets.report.bootstrap import METRICS, resample, weighted_metrics
from skipnets.report.comparison import metric_interval


def answers(
    seed: int, count: int, classes: int, *, coarse: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return (np.round(logits) if coarse else logits), labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 80), st.integers(2, 8), st.booleans())
def test_with_every_image_once_they_are_evaluation_s(
    seed: int, count: int, classes: int, coarse: bool
) -> None:
    logits, labels = answers(seed, count, classes, coarse=coarse)
    found = weighted_metrics(softmax(logits), labels, np.ones((1, count)))
    metrics = measure(logits, labels)
    for name in METRICS:
        expected = getattr(metrics, name)
        if name in ("top5", "macro_auroc") and coarse:
            continue  # logits that are equal may make probabilities that are not quite
        if expected is None:
            assert name not in found
        else:
            # torchmetrics computes these two in float32.
            precision = 1e-6 if name in ("macro_auroc", "top5") else 1e-12
            assert found[name][0] == pytest.approx(expected, abs=precision, nan_ok=True), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 80), st.integers(2, 4), st.booleans())
def test_with_weights_they_are_scikit_learn_s(seed: int, count: int, classes: int, coarse: bool) -> None:
    logits, labels = answers(seed, count, classes, coarse=coarse)
    labels[:classes] = np.arange(classes)
    probabilities = softmax(logits)
    weights = np.random.default_rng(seed).integers(0, 4, (3, count)).astype(float)
    weights[:, :classes] = 1
    found = weighted_metrics(probabilities, labels, weights)
    predicted = probabilities.argmax(1)
    for index, weight in enumerate(weights):
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weight),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(
                labels, predicted, sample_weight=weight
            ),
            "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro", sample_weight=weight),
            "nll": sklearn.metrics.log_loss(labels, probabilities, sample_weight=weight),
            "macro_auroc": np.mean(
                [
                    sklearn.metrics.roc_auc_score(labels == c, probabilities[:, c], sample_weight=weight)
                    for c in range(classes)
                ]
            ),
        }
        for name, value in expected.items():
            assert found[name][index] == pytest.approx(value, abs=1e-9), name


def test_the_spread_of_an_accuracy_is_the_binomial_s() -> None:
    logits, labels = answers(0, 400, 3)
    [sample] = resample([softmax(logits)], labels, resamples=2000, seed=0)
    accuracy = measure(logits, labels).accuracy
    assert sample["accuracy"].shape == (2000,)
    assert sample["accuracy"].mean() == pytest.approx(accuracy, abs=0.003)
    assert sample["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.06)


def test_classifiers_are_resampled_together_and_repeatably() -> None:
    logits, labels = answers(0, 50, 3)
    first, second = resample([softmax(logits), softmax(logits)], labels, resamples=70, seed=3)
    [again] = resample([softmax(logits)], labels, resamples=70, seed=3)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], again[name])


def test_a_class_that_a_resample_lacks_is_left_out_of_its_means() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 0, 1])
    found = weighted_metrics(probabilities, labels, np.array([[1.0, 2.0, 0.0]]))
    assert found["balanced_accuracy"][0] == 1
    assert np.isnan(found["macro_auroc"][0])


@pytest.mark.parametrize("classes", [2, 4])
def test_an_interval_without_errors_has_a_width(classes: int) -> None:
    """Resampling images that are all right gives 1 every time; the interval is that of the classes."""
    labels = np.repeat(np.arange(classes), 20)
    probabilities = softmax(5.0 * np.eye(classes)[labels])
    [sample] = resample([probabilities], labels, resamples=50, seed=0)
    own, _ = wilson_interval(20, 20)
    area, _ = auroc_interval(1.0, 20, 20 * (classes - 1))
    expected = {
        "balanced_accuracy": 1 - (1 - own) / np.sqrt(classes),
        "macro_f1": 1 - (1 - own) / np.sqrt(classes),
        "macro_auroc": area if classes == 2 else 1 - (1 - area) / np.sqrt(classes),
        "accuracy": wilson_interval(len(labels), len(labels))[0],
    }
    for name, low in expected.items():
        assert metric_interval(name, probabilities, labels, sample) == pytest.approx((low, 1.0)), name
    probabilities[0] = probabilities[-1]  # one error: the bootstrap has something to say
    [sample] = resample([probabilities], labels, resamples=50, seed=0)
    low, high = np.percentile(sample["macro_f1"], [2.5, 97.5])
    assert metric_interval("macro_f1", probabilities, labels, sample) == pytest.approx((low, high))
