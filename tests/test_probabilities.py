"""Probabilities against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from skipnets.probabilities import sigmoid, softmax

LOGITS = np.random.default_rng(0).normal(scale=30, size=(20, 5)).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_probabilities_are_scipys(temperature: float) -> None:
    scaled = LOGITS.astype(np.float64) / temperature
    np.testing.assert_allclose(
        softmax(LOGITS, temperature), scipy.special.softmax(scaled, axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(sigmoid(LOGITS, temperature), scipy.special.expit(scaled), rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    rows = softmax(np.array([[1e4, 0.0], [-1e4, 0.0], [50.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[1, 0], [0, 1], [1, np.exp(-50)]], rtol=1e-12)
    assert sigmoid(np.array([[-1e4, 1e4]], np.float32)).tolist() == [[0, 1]]
