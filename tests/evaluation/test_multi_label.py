"""Metrics of several labels, against scikit-learn; intervals, against a loop over resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import binary_calibration_error

from skipnets.evaluation.intervals import auroc_interval, wilson_interval
from skipnets.evaluation.multi_label import WeightedRanking, measure_labels, ranking_metrics

NAN = float("nan")
THRESHOLDS = (0.5, 0.3, 0.6)


def some(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, of which a tenth are unknown."""
    generator = np.random.default_rng(0)
    labels = (generator.random((count, 3)) < (0.5, 0.3, 0.2)).astype(np.float32)
    logits = np.round(2 * labels - 1 + generator.normal(size=labels.shape), 1).astype(np.float32)
    labels[generator.random(labels.shape) < 0.1] = NAN
    return logits, labels


def test_metrics_are_scikit_learns_on_the_known_labels() -> None:
    logits, labels = some()
    metrics = measure_labels(logits, labels, THRESHOLDS, temperature=2.0, resamples=0)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64) / 2))
    for index, threshold in enumerate(THRESHOLDS):
        known = np.isfinite(labels[:, index])
        present, scores = labels[known, index] == 1, probabilities[known, index]
        found = scores >= threshold
        expected = {
            "auroc": roc_auc_score(present, scores),
            "average_precision": average_precision_score(present, scores),
            "sensitivity": recall_score(present, found),
            "specificity": recall_score(~present, ~found),
            "precision": precision_score(present, found),
            "f1": f1_score(present, found),
        }
        assert {name: values[index] for name, values in metrics.labels.items()} == pytest.approx(expected)
        assert (metrics.present[index], metrics.absent[index]) == (present.sum(), (~present).sum())
        assert metrics.unknown[index] == (~known).sum()
        theirs = binary_calibration_error(torch.from_numpy(scores), torch.from_numpy(present), n_bins=15)
        assert metrics.ece[index] == pytest.approx(theirs.item(), rel=1e-5)
    known = np.isfinite(labels)
    flat, scores = labels[known] == 1, probabilities[known]
    found = (probabilities >= THRESHOLDS)[known]
    assert metrics.micro["auroc"] == pytest.approx(roc_auc_score(flat, scores))
    assert metrics.micro["f1"] == pytest.approx(f1_score(flat, found))
    assert metrics.macro["auroc"] == pytest.approx(metrics.labels["auroc"].mean())
    assert metrics.nll == pytest.approx(log_loss(flat, scores))
    right = [
        all((row >= THRESHOLDS)[of] == (label == 1)[of])
        for row, label, of in zip(probabilities, labels, known, strict=True)
    ]
    assert metrics.exact == pytest.approx(np.mean(right))
    assert np.isnan(metrics.intervals["auroc"]).all()


def test_weighted_rankings_are_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    scores, has = np.round(generator.random(40), 1), generator.random(40) < 0.4
    weights = generator.integers(0, 3, (5, 40)).astype(np.float64)
    auroc, precision = WeightedRanking(scores, has).areas(weights)
    assert auroc == pytest.approx([roc_auc_score(has, scores, sample_weight=each) for each in weights])
    assert precision == pytest.approx(
        [average_precision_score(has, scores, sample_weight=each) for each in weights]
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_percentiles_of_resampled_images_or_groups(grouped: bool) -> None:
    logits, labels = some(30)
    groups = np.array([f"p{index // 3}" for index in range(30)]) if grouped else None
    metrics = measure_labels(logits, labels, THRESHOLDS, groups=groups, resamples=50, seed=3)
    units = np.arange(30) if groups is None else np.unique(groups, return_inverse=True)[1]
    assert metrics.groups == (10 if grouped else None)
    generator = np.random.default_rng(3)
    count = int(units.max()) + 1
    drawn = generator.integers(0, count, (50, count))
    aurocs, macros = [], []
    for draw in drawn:
        chosen = np.concatenate([np.flatnonzero(units == unit) for unit in draw])
        of_labels = ranking_metrics(logits[chosen], labels[chosen])["auroc"]
        aurocs.append(of_labels)
        macros.append(np.nanmean(of_labels))
    expected = np.nanpercentile(aurocs, (2.5, 97.5), axis=0).T
    np.testing.assert_allclose(metrics.intervals["auroc"], expected)
    assert metrics.macro_intervals["auroc"] == pytest.approx(np.nanpercentile(macros, (2.5, 97.5)))


def test_at_the_edges_intervals_have_a_width_and_what_is_undefined_is_nan() -> None:
    logits = np.array([[3, -3, 1], [2, -3, 1], [-3, -2, 1], [-3, -3, 1]], np.float32)
    labels = np.array([[1, 0, 1], [1, 0, NAN], [0, 0, 1], [0, 0, NAN]], np.float32)
    metrics = measure_labels(logits, labels, (0.5, 0.5, 0.5), resamples=50)
    assert metrics.labels["auroc"][0] == 1
    assert metrics.intervals["auroc"][0] == pytest.approx(auroc_interval(1.0, 2, 2))
    assert metrics.intervals["sensitivity"][0] == pytest.approx(wilson_interval(2, 2))
    assert np.isnan(metrics.intervals["f1"][0]).all()
    assert np.isnan(
        [metrics.labels[name][1] for name in ("auroc", "average_precision", "sensitivity", "f1")]
    ).all()
    assert metrics.labels["specificity"][1] == 1
    assert np.isnan(metrics.labels["auroc"][2])
    assert metrics.macro["auroc"] == 1
    assert metrics.macro_intervals["auroc"] is None


def test_images_of_one_patient_count_once_at_the_edges() -> None:
    """A hundred images of two patients, all found, say as much as two images."""
    present = np.repeat([1, 1, 0, 0, 0, 0], 50).astype(np.float32)[:, None]
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], 50)
    metrics = measure_labels(6 * present - 3, present, (0.5,), groups=groups, resamples=50)
    assert metrics.intervals["sensitivity"][0] == pytest.approx(wilson_interval(2, 2))
    assert metrics.intervals["specificity"][0] == pytest.approx(wilson_interval(4, 4))
    assert metrics.intervals["precision"][0] == pytest.approx(wilson_interval(2, 2))
    assert metrics.intervals["auroc"][0] == pytest.approx(auroc_interval(1.0, 2, 4))


def test_what_one_patient_has_gets_no_interval_without_a_width() -> None:
    """Two of three images of the only patient with the label are found: no resample says otherwise."""
    present = np.array([1, 1, 1, *[0] * 9], np.float32)[:, None]
    logits = np.array([2, 2, -2, *[1, -1, -3] * 3], np.float32)[:, None]
    groups = np.array(["a"] * 3 + [f"p{index}" for index in range(9)])
    metrics = measure_labels(logits, present, (0.5,), groups=groups, resamples=200)
    assert metrics.labels["sensitivity"][0] == pytest.approx(2 / 3)
    for name in ("sensitivity", "average_precision", "f1"):
        assert np.isnan(metrics.intervals[name][0]).all(), name
    area = float(metrics.labels["auroc"][0])
    assert metrics.intervals["auroc"][0] == pytest.approx(auroc_interval(area, 1, 9))
    low, high = metrics.intervals["specificity"][0]
    assert low < high


def test_one_group_alone_has_no_bootstrap() -> None:
    logits, labels = some(20)
    metrics = measure_labels(logits, labels, THRESHOLDS, groups=np.full(20, "a"), resamples=50)
    assert metrics.groups == 1
    assert np.isnan(metrics.intervals["f1"]).all()
    assert set(metrics.macro_intervals.values()) | set(metrics.micro_intervals.values()) == {None}


def test_logits_whose_probabilities_are_rounded_to_1_still_count() -> None:
    """At 40 and 50 both probabilities are 1.0, as float64."""
    logits = np.array([[50], [40], [45], [-60]], np.float32)
    labels = np.array([[1], [0], [1], [0]], np.float32)
    metrics = measure_labels(logits, labels, (0.5,), resamples=0)
    assert metrics.labels["auroc"][0] == 1
    assert metrics.nll == pytest.approx(40 / 4)


def test_the_interval_of_a_mean_average_precision_contains_it() -> None:
    """Of many labels the spread of the mean is small, and the bias of each resample stays."""
    generator = np.random.default_rng(0)
    labels = (generator.random((40, 80)) < 0.05).astype(np.float32)
    logits = generator.normal(size=(40, 80)).astype(np.float32)
    metrics = measure_labels(logits, labels, [0.5] * 80, resamples=25, seed=1)
    for summary in ("macro", "micro"):
        for name, interval in getattr(metrics, f"{summary}_intervals").items():
            if interval is not None:
                assert interval[0] <= getattr(metrics, summary)[name] <= interval[1], (summary, name)
    # Without the shift it is below all that resamples give.
    means = []
    for rows in np.random.default_rng(1).integers(0, 40, (25, 40)):
        both = [index for index in range(80) if 0 < labels[rows, index].sum() < 40]
        means.append(np.mean([average_precision_score(labels[rows, i], logits[rows, i]) for i in both]))
    low, high = np.percentile(means, (2.5, 97.5))
    value = metrics.macro["average_precision"]
    assert value < low
    shift = value - np.median(means)
    assert metrics.macro_intervals["average_precision"] == pytest.approx((low + shift, high + shift))
