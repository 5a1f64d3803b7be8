"""Sets cover as often as they promise, and no more images are rejected than were to be."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from skipnets.errors import UserError
from skipnets.uncertainty import (
    CalibrationScores,
    OutlierDetector,
    Uncertainty,
    check_share,
    class_scores,
    joint_scores,
    label_scores,
    label_sets,
    outlier_scores,
    prediction_intervals,
    prediction_sets,
    reference_size,
)


def slow_rank(images: int, coverage: str) -> int:
    """The smallest rank that is at least (n + 1)·coverage, by counting."""
    return next(rank for rank in range(1, images + 3) if rank >= (images + 1) * Fraction(coverage))


@settings(max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 400), st.sampled_from(["0.1", "0.5", "0.8", "0.9", "0.95", "0.99"])
)
def test_the_quantile_is_the_corrected_one_and_too_few_images_are_said(
    seed: int, images: int, coverage: str
) -> None:
    scores = np.random.default_rng(seed).random(images)
    kept = CalibrationScores.of(scores)
    rank = slow_rank(images, coverage)
    if rank <= images:
        assert kept.quantile(float(coverage)) == sorted(scores)[rank - 1]
        return
    needed = next(n for n in range(images, 1000) if slow_rank(n, coverage) <= n)
    with pytest.raises(
        UserError, match=f"coverage={coverage}: needs at least {needed} calibration images, and"
    ):
        kept.quantile(float(coverage))


@pytest.mark.parametrize("images", [1000, 1001, 1999, 2500, 12_345])
def test_of_many_scores_a_thousand_are_kept_which_is_never_less_safe(images: int) -> None:
    scores = np.random.default_rng(images).permutation(np.arange(1.0, images + 1))  # each is its own rank
    kept = CalibrationScores.of(scores)
    assert len(kept.scores) == 1000
    assert kept.scores[-1] == images
    for thousandths in range(1, 999, 7):
        rank = -(-(images + 1) * thousandths // 1000)
        assert rank <= kept.quantile(thousandths / 1000) <= rank + images / 1000 + 1
    # A p-value is at most what it is without a limit only where ranks are rounded, by a thousandth.
    asked = np.array([0.5, 1, 7.5, images / 2, images - 0.5, images + 1])
    exact = np.array([(1 + (scores >= value).sum()) / (1 + images) for value in asked])
    assert (kept.p_values(asked) >= exact - 1e-12).all()
    assert kept.p_values(asked) == pytest.approx(exact, abs=0.0021)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 300), st.integers(1, 99))
def test_p_values_are_counted_and_reject_what_exceeds_the_quantile(
    seed: int, images: int, percent: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(images), 2)  # with ties
    asked = np.round(rng.random(50), 2)
    kept = CalibrationScores.of(scores)
    wanted = [(1 + sum(score >= value for score in scores)) / (1 + images) for value in asked]
    assert kept.p_values(asked) == pytest.approx(wanted)
    share = percent / 100
    if Fraction(str(share)) * (images + 1) < 1:
        needed = next(n for n in range(images, 1000) if Fraction(percent, 100) * (n + 1) >= 1)
        with pytest.raises(UserError, match=f"reject={share:g}: needs at least {needed} calibration images"):
            kept.check_reject(share)
        return
    kept.check_reject(share)
    limit = kept.quantile(float(1 - Fraction(str(share))))
    np.testing.assert_array_equal(kept.rejects(kept.p_values(asked), share), asked > limit)


def probabilities(
    rng: np.random.Generator, count: int, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities, and labels that are drawn from others: the classifier is not calibrated."""
    logits = rng.normal(size=(count, classes)) * 1.5
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in true], np.int64)
    shown = np.exp(2 * logits + rng.normal(size=logits.shape))
    return shown / shown.sum(1, keepdims=True), labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_within_a_point_on_average_of_twenty_splits(coverage: float) -> None:
    rng = np.random.default_rng(7)
    shares, labels = probabilities(rng, 6000, 10)
    covered = []
    for _ in range(20):
        order = rng.permutation(len(labels))
        fitting, new = order[:1000], order[1000:]
        scores = CalibrationScores.of(1 - shares[fitting, labels[fitting]])
        sets = prediction_sets(shares[new], scores, coverage)
        covered.append(sets[np.arange(len(new)), labels[new]].mean())
        assert sets.any(1).all()
        assert sets[np.arange(len(new)), shares[new].argmax(1)].all()
    assert np.mean(covered) == pytest.approx(coverage, abs=0.01)
    # Of a split alone, coverage is beta-distributed with a standard deviation of about √(c(1 - c)/n).
    assert np.std(covered) < 2 * np.sqrt(coverage * (1 - coverage) * (1 / 1000 + 1 / 5000))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(20, 200), st.integers(2, 6))
def test_sets_are_those_of_a_slow_version(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    shares, labels = probabilities(rng, images + 10, classes)
    scores = sorted(1 - shares[index, labels[index]] for index in range(images))
    limit = scores[slow_rank(images, "0.9") - 1]
    wanted = [[bool(1 - share <= limit) or share == max(row) for share in row] for row in shares[images:]]
    kept = CalibrationScores.of(1 - shares[np.arange(images), labels[:images]])
    assert prediction_sets(shares[images:], kept, 0.9).tolist() == wanted


def slow_class_score(row: list[float], position: int, kind: str) -> float:
    """The score of one class of an image, by its definition; none of the probabilities are equal."""
    if kind == "lac":
        return 1 - row[position]
    larger = [share for share in row if share > row[position]]
    penalty = 0.01 * max(len(larger) + 1 - 5, 0) if kind == "raps" else 0
    return sum(larger) + row[position] / 2 + penalty


@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_scores_of_classes_are_those_of_their_papers(kind: Any) -> None:
    shares, _ = probabilities(np.random.default_rng(3), 40, 9)
    wanted = [[slow_class_score(row, position, kind) for position in range(9)] for row in shares.tolist()]
    np.testing.assert_allclose(class_scores(shares, kind), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", ["aps", "raps"])
def test_adaptive_sets_cover_and_are_larger_where_the_network_is_unsure(kind: Any) -> None:
    """On average of five splits both kinds cover as was asked for, but adaptive ones more hard images."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(8000, 12)) * np.repeat([4.0, 1.0], 4000)[:, None]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(12, p=row) for row in shares], np.int64)
    unsure = np.arange(8000) >= 4000
    covered: dict[str, list[list[float]]] = {"lac": [], kind: []}
    for _ in range(5):
        order = rng.permutation(8000)
        fitting, new = order[:2000], order[2000:]
        for name, found in covered.items():
            of_classes = class_scores(shares, name)  # type: ignore[arg-type]
            scores = CalibrationScores.of(of_classes[fitting, labels[fitting]])
            sets = prediction_sets(shares[new], scores, 0.8, name)  # type: ignore[arg-type]
            held = sets[np.arange(len(new)), labels[new]]
            found.append([held.mean(), held[unsure[new]].mean()])
    (lac, of_hard), (adaptive, of_hard_adaptive) = (np.mean(each, axis=0) for each in covered.values())
    assert lac == pytest.approx(0.8, abs=0.01)
    assert adaptive == pytest.approx(0.8, abs=0.01)
    assert of_hard < 0.7  # the smallest sets on average leave out those that are hard
    assert of_hard_adaptive > of_hard + 0.05


def test_scores_for_outliers_are_those_of_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(20, 7)) * 30).astype(np.float32)
    assert outlier_scores("energy", logits) == pytest.approx(-logsumexp(logits.astype(float), axis=1))
    assert outlier_scores("max-logit", logits) == pytest.approx(-logits.max(1))
    for count in (30, 3):  # more and fewer than the fifth neighbor
        features, seen = rng.normal(size=(20, 6)), rng.normal(size=(count, 6))
        unit = (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float16)
        found = NearestNeighbors(n_neighbors=min(5, count), metric="cosine").fit(unit.astype(float))
        distances = found.kneighbors(features)[0][:, -1]
        # The reference's vectors have a length of 1 but for the rounding to float16.
        assert outlier_scores("knn", logits, features, unit) == pytest.approx(distances, abs=5e-4)
    with pytest.raises(UserError, match="reference for outliers has 6 features, and the network 5"):
        outlier_scores("knn", logits, features[:, :5], unit)


def detector(score: str = "knn", features: int = 4) -> OutlierDetector:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(9, features)).astype(np.float16) if score == "knn" else None
    return OutlierDetector(
        score=score,  # type: ignore[arg-type]
        calibration=CalibrationScores.of(rng.random(30)),
        reference=reference,
        auroc={"energy": 0.5, score: 0.9},
    )


@pytest.mark.parametrize("score", ["energy", "max-logit", "knn"])
def test_what_is_stored_is_read_again(score: str) -> None:
    rng = np.random.default_rng(1)
    stored = Uncertainty(
        temperature=1.25,
        tta="flip",
        sets=CalibrationScores.of(rng.random(2345)),
        set_score="aps" if score == "knn" else "lac",
        outliers=detector(score),
    )
    text = json.dumps(stored.to_dict())
    again = Uncertainty.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.set_score == stored.set_score
    assert again.sets.quantile(0.9) == stored.sets.quantile(0.9)
    logits, features = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    assert (again.outliers.p_values(logits, features) == stored.outliers.p_values(logits, features)).all()


def test_a_reference_is_bounded_whatever_the_network() -> None:
    for features in (1, 64, 512, 1024, 2048, 10_000, 2**17):
        rows = reference_size(features)
        assert 1 <= rows <= 2000
        assert rows == 1 or 2 * rows * features <= 2**20
    values = detector(features=2**10).to_dict()
    assert Uncertainty.from_dict({
        "temperature": 1.0, "tta": "none", "sets": {"images": 1, "scores": [0.5]}, "outliers": values
    }).outliers.reference.shape == (9, 2**10)  # fmt: skip


def _changed(path: str, value: object) -> dict[str, object]:
    values = Uncertainty(
        temperature=1.0, tta="none", sets=CalibrationScores.of(np.array([0.1, 0.2])), outliers=detector()
    ).to_dict()
    record = values
    *parents, last = path.split(".")
    for name in parents:
        record = record[name]
    record[last] = value
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("temperature", "1", "temperature is missing or of the wrong type"),
        ("tta", "rotate", "tta=rotate: must be one of none, flip, crops, flip-crops"),
        ("sets", [], "sets is missing or of the wrong type"),
        ("set_score", "apps", "sets=apps: must be one of lac, aps, raps; did you mean aps"),
        ("set_score", 1, "set_score is missing or of the wrong type"),
        ("sets.images", True, "images is missing or of the wrong type"),
        ("sets.images", 1, "scores must be 1 to 1,000"),
        ("sets.images", 2**70, "scores must be 1 to 1,000"),
        ("sets.scores", [], "scores must be 1 to 1,000"),
        ("sets.scores", [0.2, 0.1], "in rising order"),
        ("sets.scores", ["a", 1], "scores must be numbers"),
        ("sets.scores", [10**400, 10**400], "too large|finite"),
        ("outliers.score", "entropy", "score is 'entropy', which is not known"),
        ("outliers.auroc", {"energy": 2}, "auroc must be numbers from 0 to 1"),
        ("outliers.reference", None, "reference is missing"),
        ("outliers.reference.features", 5, r"reference\.vectors is damaged"),
        ("outliers.reference.features", 2**40, "reference is too large"),
        ("outliers.reference.vectors", "é", r"reference\.vectors is damaged"),
        ("outliers.reference.vectors", "", r"reference\.vectors is damaged"),
        ("outliers.reference.vectors", "fHw8fHw8fHw=", r"reference\.vectors is damaged"),
        ("outliers.reference.vectors", "A" * 2**22, "reference is too large"),
    ],
)
def test_damaged_values_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises((UserError, OverflowError), match=message):
        Uncertainty.from_dict(_changed(path, value))


@pytest.mark.parametrize("value", [0, 1, -0.1, 90, float("nan"), True, "0.9"])
def test_a_share_is_between_0_and_1(value: object) -> None:
    with pytest.raises(UserError, match=r"coverage=.*: must be above 0 and below 1, such as 0\.9"):
        check_share(coverage=value)  # type: ignore[arg-type]
    check_share(coverage=None, reject=0.05)


def labeled(seed: int, images: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of five labels, of which one is rare, and which of them are present, or not known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal([1, 0, 0, -1, -3], 1.5, (images, 5))
    labels = (rng.random((images, 5)) < 1 / (1 + np.exp(-1.5 * logits))).astype(np.float64)
    labels[rng.random((images, 5)) < 0.1] = np.nan
    return 1 / (1 + np.exp(-logits)), labels


def missed(sets: NDArray[np.bool_], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of its known labels that each image's set misses, of images that have one."""
    return np.array(
        [1 - chosen[row == 1].mean() for chosen, row in zip(sets, labels, strict=True) if (row == 1).any()]
    )


@pytest.mark.parametrize("coverage", [0.7, 0.8, 0.9])
def test_sets_of_labels_are_those_of_conformal_risk_control(coverage: float) -> None:
    """Angelopoulos et al. 2024: the smallest limit with n/(n + 1)·risk + 1/(n + 1) ≤ α."""
    probabilities, labels = labeled(0, 120)
    having = (labels == 1).any(1)
    count = int(having.sum()) // 10 * 10 - 1  # so that (n + 1)·coverage is whole, and nothing is rounded
    chosen = np.flatnonzero(having)[:count]
    scores = label_scores(probabilities[chosen], labels[chosen])
    assert scores is not None
    assert scores.images == count
    limits = np.sort(1 - probabilities[chosen][labels[chosen] == 1])
    smallest = next(
        limit
        for limit in limits
        if count / (count + 1) * missed(1 - probabilities[chosen] <= limit, labels[chosen]).mean()
        + 1 / (count + 1)
        <= 1 - coverage + 1e-9
    )
    assert scores.quantile(coverage) == pytest.approx(smallest)
    new, _ = labeled(1, 50)
    np.testing.assert_array_equal(label_sets(new, scores, coverage), 1 - new <= smallest)


def test_sets_of_labels_hold_the_share_asked_for_on_average_of_five_times_twenty_splits() -> None:
    probabilities, labels = labeled(2, 4000)
    for repetition in range(5):
        risks = []
        for split in range(20):
            order = np.random.default_rng((repetition, split)).permutation(len(labels))
            calibration, test = order[:1000], order[1000:]
            scores = label_scores(probabilities[calibration], labels[calibration])
            assert scores is not None
            risks.append(missed(label_sets(probabilities[test], scores, 0.9), labels[test]).mean())
        assert np.mean(risks) == pytest.approx(0.1, abs=0.01)


def test_with_one_label_an_image_it_is_the_usual_quantile() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((1234, 4))
    truth = rng.integers(0, 4, 1234)
    scores = label_scores(probabilities, np.eye(4)[truth])
    assert scores is not None
    usual = CalibrationScores.of(1 - probabilities[np.arange(1234), truth])
    assert scores.images == usual.images == 1234
    np.testing.assert_array_equal(scores.scores, usual.scores)
    assert label_scores(probabilities, np.where(rng.random((1234, 4)) < 0.5, np.nan, 0)) is None


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_intervals_cover_within_a_point_on_average_of_five_times_twenty_splits(coverage: float) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(50, 20, (3000, 2))
    values = numbers + rng.standard_t(2, (3000, 2)) * (1, 30)  # errors with heavy tails, of two units
    for repetition in range(5):
        covered = []
        for split in range(20):
            order = np.random.default_rng((repetition, split)).permutation(3000)
            calibration, test = order[:500], order[500:]
            scores = [CalibrationScores.of(each) for each in np.abs(values - numbers)[calibration].T]
            low, high = np.moveaxis(prediction_intervals(values[test], scores, coverage, [None, None]), 2, 0)
            covered.append(((low <= numbers[test]) & (numbers[test] <= high)).mean(0))
        assert np.mean(covered, axis=0) == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_joint_intervals_hold_all_numbers_of_an_image_at_once(coverage: float) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(50, 20, (3000, 3))
    deviations = (1.0, 30.0, 0.2)
    values = numbers + rng.standard_t(3, (3000, 3)) * deviations
    missing = rng.random((3000, 3)) < 0.05
    separate: list[float] = []
    for repetition in range(5):
        covered = []
        for split in range(20):
            order = np.random.default_rng((repetition, split)).permutation(3000)
            calibration, test = order[:500], order[500:]
            residuals = np.where(missing, np.nan, np.abs(values - numbers))[calibration]
            scores = joint_scores(residuals, deviations)
            assert scores is not None
            assert scores[0].images == np.isfinite(residuals).all(1).sum()
            of_each = [CalibrationScores.of(column[np.isfinite(column)]) for column in residuals.T]
            for each, found in ((scores, covered), (of_each, separate)):
                limits = prediction_intervals(values[test], each, coverage, [None] * 3)
                low, high = np.moveaxis(limits, 2, 0)
                found.append(((low <= numbers[test]) & (numbers[test] <= high)).all(1).mean())
        assert np.mean(covered) == pytest.approx(coverage, abs=0.01)
    assert np.mean(separate) == pytest.approx(coverage**3, abs=0.02)  # the errors are independent
    assert joint_scores(np.full((4, 3), np.nan), deviations) is None


def test_intervals_of_grades_stay_within_them() -> None:
    scores = [CalibrationScores.of(np.arange(5.0))]
    limits = prediction_intervals(np.array([[0.0], [2.0], [4.0]]), scores, 0.5, [(0, 4)])
    assert limits[:, 0].tolist() == [[0, 2], [0, 4], [2, 4]]


def test_residuals_are_stored_and_outliers_may_lack() -> None:
    scores = CalibrationScores.of(np.array([0.5, 2.0]))
    stored = Uncertainty(temperature=1.0, tta="none", intervals=(scores, scores))
    again = Uncertainty.from_dict(json.loads(json.dumps(stored.to_dict())))
    assert (again.sets, again.outliers, again.images) == (None, None, 2)
    assert again.highest_coverage == pytest.approx(2 / 3)
    assert [each.scores.tolist() for each in again.intervals] == [[0.5, 2.0]] * 2
    with pytest.raises(UserError, match=r"^uncertainty: intervals is missing or of the wrong type"):
        Uncertainty.from_dict(stored.to_dict() | {"intervals": 3})
