"""Predictions come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.helpers.classifiers import make_classifier, make_images

from skipnets.evaluation import evaluate, write_table
from skipnets.evaluation.predictions import read_column_predictions, read_predictions


def test_what_an_evaluation_wrote_is_read_again(tmp_path: Path) -> None:
    classifier = make_classifier("resnet20")
    evaluation = evaluate(classifier, make_images(classifier, 8, wrong=2), split="val", workers=1)
    evaluation.write_predictions(tmp_path / "predictions.parquet")
    names, labels, logits, groups = read_predictions(tmp_path / "predictions.parquet", classifier.classes)
    assert names == evaluation.names
    assert groups is None
    np.testing.assert_array_equal(labels, evaluation.labels)
    np.testing.assert_allclose(np.exp(logits), evaluation.probabilities, rtol=1e-6)
    with pytest.raises(KeyError):
        read_predictions(tmp_path / "predictions.parquet", ("ant", "other"))


def test_columns_of_labels_and_numbers_are_read_with_their_groups(tmp_path: Path) -> None:
    columns: dict[str, list[str | float | None]] = {
        "path": ["a.png", "b.png"],
        "y:age": [1.5, None],
        "p:age": [1.25, 3.0],
        "group": ["x", "y"],
    }
    write_table(tmp_path / "t.parquet", columns)
    names, true, predicted, groups = read_column_predictions(tmp_path / "t.parquet", ["age"])
    assert names == ["a.png", "b.png"]
    np.testing.assert_array_equal(true, [[1.5], [np.nan]])
    assert predicted.tolist() == [[1.25], [3.0]]
    assert groups is not None
    assert groups.tolist() == ["x", "y"]
    write_table(tmp_path / "u.parquet", {name: columns[name] for name in ("path", "y:age", "p:age")})
    assert read_column_predictions(tmp_path / "u.parquet", ["age"])[3] is None
    with pytest.raises(KeyError):
        read_column_predictions(tmp_path / "t.parquet", ["height"])
