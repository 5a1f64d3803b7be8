"""Whether half precision keeps a network's labels."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from skipnets.errors import UserError
from skipnets.runtimes.precision import CHECKED_IMAGES, HalfPrecisionCheck, check_precision

EXACT = np.asarray([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]], np.float32)
BATCHES = CHECKED_IMAGES // len(EXACT)


def test_half_precision_is_taken_after_enough_images(caplog: pytest.LogCaptureFixture) -> None:
    check = HalfPrecisionCheck("16-mixed")
    with caplog.at_level(logging.INFO, "skipnets"):
        decisions = [check.add(EXACT, EXACT + np.float32([0, 1e-3, 0])) for _ in range(BATCHES)]
    assert decisions == [None] * (BATCHES - 1) + ["16-mixed"]
    assert (check.images, check.other_labels) == (CHECKED_IMAGES, 0)
    # Of the first image, p₁ = e⁰ / (e² + e⁰ + e⁻¹); by a thousandth of p₁ (1 − p₁) more.
    largest = max(p * (1 - p) for p in (np.exp(EXACT) / np.exp(EXACT).sum(1, keepdims=True))[:, 1])
    assert check.largest_difference == pytest.approx(1e-3 * largest, rel=1e-2)
    assert "computing in 16-mixed: 0 of 64 images get another label" in caplog.text
    assert "--precision 32-true" in caplog.text


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(EXACT[:, ::-1], id="another label"),
        pytest.param(EXACT * np.float32(1.2), id="other probabilities"),
        pytest.param(EXACT * np.float32(np.nan), id="no numbers"),
        pytest.param(EXACT + np.float32([0, np.inf, 0]), id="overflow"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_half_precision_is_not_taken(half: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "skipnets"):
        assert HalfPrecisionCheck("bf16-mixed").add(EXACT, half) == "32-true"
    assert "computing in float32: in bf16-mixed" in caplog.text


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        (
            "bf16",
            "precision=bf16: must be one of auto, 32-true, bf16-mixed, 16-mixed; did you mean bf16-mixed",
        ),
        ("16-mixed", "precision=16-mixed: needs a GPU; on a CPU take 32-true or bf16-mixed"),
    ],
)
def test_precisions_that_cannot_be_had(precision: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_precision(precision, device="cpu")


def test_precisions_that_can() -> None:
    check_precision("16-mixed", device="cuda")
    for precision in ("auto", "32-true", "bf16-mixed"):
        check_precision(precision, device="cpu")
