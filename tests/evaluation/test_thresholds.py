"""Thresholds, against trying every one, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from skipnets.errors import UserError
from skipnets.evaluation.thresholds import ThresholdRule, choose_thresholds

NAN = float("nan")
CLASSES = ("a",)


def some(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    present = generator.random(80) < 0.3
    scores = np.round(np.clip(0.4 * present + 0.6 * generator.random(80), 0, 1), 2)  # with ties
    return scores[:, None], present.astype(np.float32)[:, None]


def chosen(rule: str, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    scores, labels = some(seed)
    (threshold,), undefined = choose_thresholds(scores, labels, ThresholdRule.parse(rule), CLASSES)
    assert not undefined
    return threshold, labels[:, 0] == 1, scores[:, 0]


def measures(present: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """F1, sensitivity and specificity."""
    return (
        float(f1_score(present, found, zero_division=0)),
        float(recall_score(present, found)),
        float(recall_score(~present, ~found)),
    )


@pytest.mark.parametrize("seed", range(2))
def test_each_rule_is_as_good_as_the_best_of_all_thresholds(seed: int) -> None:
    scores, labels = (each[:, 0] for each in some(seed))
    present = labels == 1
    every = np.array([measures(present, scores >= each) for each in [*np.unique(scores), 1.1]])
    tried = dict(zip(("f1", "sensitivity", "specificity"), every.T, strict=True))
    best = {
        "f1": ("f1", tried["f1"].max()),
        "youden": ("sum", (tried["sensitivity"] + tried["specificity"]).max()),
        "sensitivity=0.9": ("specificity", tried["specificity"][tried["sensitivity"] >= 0.9].max()),
        "specificity=0.9": ("sensitivity", tried["sensitivity"][tried["specificity"] >= 0.9].max()),
    }
    for rule, (name, value) in best.items():
        threshold, _, _ = chosen(rule, seed)
        f1, sensitivity, specificity = measures(present, scores >= threshold)
        reached = {"f1": f1, "sensitivity": sensitivity, "specificity": specificity}
        reached["sum"] = sensitivity + specificity
        assert reached[name] == pytest.approx(value)
        kind, _, share = rule.partition("=")
        assert not share or reached[kind] >= float(share)


def test_a_threshold_lies_between_the_images_and_unknown_labels_do_not_count() -> None:
    scores = np.array([[0.1], [0.3], [0.6], [0.9], [0.99]])
    labels = np.array([[0], [0], [1], [1], [NAN]], np.float32)
    thresholds, _ = choose_thresholds(scores, labels, ThresholdRule("f1"), CLASSES)
    assert thresholds == pytest.approx([0.45])


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_share_asked_for_is_met_by_exactly_that_many_images(tenths: int) -> None:
    """0.1 and 0.2 of ten images are one and two, however 1 - 0.9 and 1 - 0.8 are rounded."""
    scores = np.arange(20)[:, None] / 20
    labels = (np.arange(20) % 2)[:, None].astype(np.float32)
    for kind, of in (("specificity", labels[:, 0] == 0), ("sensitivity", labels[:, 0] == 1)):
        (threshold,), _ = choose_thresholds(scores, labels, ThresholdRule(kind, tenths / 10), CLASSES)
        right = (scores[of, 0] >= threshold) == (kind == "sensitivity")
        assert right.sum() == tenths


def test_a_label_that_no_image_has_gets_one_half_and_is_named() -> None:
    labels = np.array([[0, 1, 1], [0, 1, 0]], np.float32)
    thresholds, undefined = choose_thresholds(np.full((2, 3), 0.3), labels, ThresholdRule("f1"), "abc")
    assert thresholds[:2] == (0.5, 0.5)
    assert undefined == ["a", "b"]


def test_one_number_for_all() -> None:
    scores, labels = some(0)
    assert choose_thresholds(scores, labels, ThresholdRule.parse("0.3"), CLASSES) == ((0.3,), [])
    assert [str(ThresholdRule.parse(text)) for text in ("0.3", "F1", "sensitivity=.9")] == [
        "0.3",
        "f1",
        "sensitivity=0.9",
    ]


@pytest.mark.parametrize("text", ["best", "1.5", "sensitivity=1.2", "f1=0.5", "sensitivity", "nan", ""])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"threshold=.*must be f1, youden, sensitivity=0.9 or"):
        ThresholdRule.parse(text)
