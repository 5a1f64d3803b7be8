"""Runs are compared on the same images, with p-values for all that was tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from skipnets.errors import UserError
from skipnets.report.pairing import caveats, holm, matched, verdict


@dataclass
class Run:
    folder: Path = Path("first")
    classes: tuple[str, ...] = ("cat", "dog", "bird")
    names: list[str] = field(default_factory=lambda: ["a", "b", "c", "d"])
    evaluation: dict[str, Any] = field(default_factory=lambda: {"split": "test", "data": "pets"})


def test_images_and_classes_are_found_in_the_other_run_s_order() -> None:
    first, other = Run(), Run(classes=("bird", "cat", "dog"), names=["c", "a", "d", "b"])
    order, columns = matched(first, other)
    assert [other.names[place] for place in order] == first.names
    assert tuple(other.classes[place] for place in columns) == first.classes


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Run(classes=("cat", "dog", "fish")), r"their classes differ \(bird, fish\)"),
        (Run(names=["a", "b", "c", "e"]), r"their test images differ \(2 are in one only: d, e\)"),
        (
            Run(evaluation={"split": "val", "data": "pets"}),
            r'evaluated on different splits \("test" and "val"\)',
        ),
    ],
)
def test_other_images_classes_and_splits_are_refused(other: Run, message: str) -> None:
    with pytest.raises(UserError, match=message):
        matched(Run(), other)
    labels = Run(evaluation={"split": "test", "data": "pets", "task": "multi-label"})
    with pytest.raises(UserError, match=r"their labels differ \(cat\)"):
        matched(labels, Run(classes=("dog", "bird")))


def test_holm_s_own_steps() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]


def test_a_difference_within_noise_is_neither_better_nor_worse() -> None:
    assert [verdict(0.04, better=better) for better in (True, False)] == ["better", "worse"]
    assert {verdict(p, better=True) for p in (0.05, 0.9, float("nan"))} == {"within noise"}


def test_warnings_and_other_data_are_named() -> None:
    other = Run(
        evaluation={"split": "test", "data": "copy", "warnings": ["3 of the 4 images were trained on"]}
    )
    assert caveats([Run(), other], ["one", "two"]) == [
        "two was evaluated on copy, one on pets; names and labels of the images are the same",
        "two: 3 of the 4 images were trained on",
    ]
