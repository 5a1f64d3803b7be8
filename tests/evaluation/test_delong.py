"""DeLong's test, against comparing all pairs of images, and how often it errs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from skipnets.errors import UserError
from skipnets.evaluation.delong import auroc_covariance, delong_test


def some(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    present = np.arange(count) < count // 3
    signal = present + generator.normal(size=count)
    first, second = (np.round(signal + generator.normal(size=count), 1) for _ in range(2))  # with ties
    return first, second, present


def slow_covariance(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """DeLong's equations, from every pair of an image with the label and one without."""
    of_positives, of_negatives = [], []
    for row in scores:
        pairs = (row[present][:, None] > row[~present]) + 0.5 * (row[present][:, None] == row[~present])
        of_positives.append(pairs.mean(1))
        of_negatives.append(pairs.mean(0))
    return np.cov(of_positives) / present.sum() + np.cov(of_negatives) / (~present).sum()


def test_areas_and_covariance_are_those_of_all_pairs() -> None:
    first, second, present = some(0)
    areas, covariance = auroc_covariance(np.stack([first, second]), present)
    assert areas == pytest.approx([roc_auc_score(present, each) for each in (first, second)])
    np.testing.assert_allclose(covariance, slow_covariance(np.stack([first, second]), present))
    tested = delong_test(first, second, present)
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert tested.p == pytest.approx(2 * norm.sf(abs(tested.difference) / spread))
    assert tested.interval == pytest.approx(
        tested.difference + 1.959964 * spread * np.array([-1, 1]), abs=1e-6
    )


def test_one_in_twenty_equally_good_pairs_differs_significantly() -> None:
    values = [delong_test(*some(seed)).p for seed in range(400)]
    assert 0.025 < np.mean(np.array(values) < 0.05) < 0.085


def test_equal_classifiers_do_not_differ_and_opposite_ones_do() -> None:
    first, _, present = some(1)
    assert delong_test(first, 3 * first - 1, present).p == 1
    perfect = present.astype(float)
    assert delong_test(perfect, -perfect, present).p == 0


def test_one_image_with_the_label_has_no_variance() -> None:
    with pytest.raises(UserError, match="at least two groups"):
        delong_test(np.arange(4.0), np.arange(4.0), np.arange(4) == 0)


def test_images_shown_three_times_say_no_more_than_once() -> None:
    first, second, present = some(2)
    scores = np.stack([first, second])
    once = auroc_covariance(scores, present)
    thrice = auroc_covariance(
        np.repeat(scores, 3, axis=1), np.repeat(present, 3), np.repeat(np.arange(len(present)), 3)
    )
    for one, other in zip(once, thrice, strict=True):
        np.testing.assert_allclose(one, other)


def test_the_variance_of_grouped_images_is_that_over_many_samples() -> None:
    generator = np.random.default_rng(0)
    groups = np.arange(300) // 3
    areas, variances = [], []
    for _ in range(300):
        patient = generator.normal(size=100)[groups]
        present = patient + generator.normal(size=300) > 0.5  # both depend on the patient
        scores = patient + generator.normal(size=300)
        [area], [[variance]] = auroc_covariance(scores[None], present, groups)
        areas.append(area)
        variances.append(variance)
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.2)
