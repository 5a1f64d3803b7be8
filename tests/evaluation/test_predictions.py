"""Predictions come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.helpers.classifiers import make_classifier, make_images

from skipnets.evaluation import evaluate
from skipnets.evaluation.predictions import read_predictions


def test_what_an_evaluation_wrote_is_read_again(tmp_path: Path) -> None:
    classifier = make_classifier("resnet20")
    evaluation = evaluate(classifier, make_images(classifier, 8, wrong=2), split="val", workers=1)
    evaluation.write_predictions(tmp_path / "predictions.parquet")
    names, labels, logits = read_predictions(tmp_path / "predictions.parquet", classifier.classes)
    assert names == evaluation.names
    np.testing.assert_array_equal(labels, evaluation.labels)
    np.testing.assert_allclose(np.exp(logits), evaluation.probabilities, rtol=1e-6)
    with pytest.raises(KeyError):
        read_predictions(tmp_path / "predictions.parquet", ("ant", "other"))
