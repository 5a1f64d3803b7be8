"""Results of folds, joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import accuracy_score, log_loss

from skipnets.evaluation.metrics import measure
from skipnets.evaluation.out_of_fold import COMPARED, FoldResult, out_of_fold
from skipnets.tables import as_text

CLASSES = ("a", "b", "c")


def fold(number: int, names: list[str], seed: int, **changes: Any) -> FoldResult:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, len(names))
    logits = generator.normal(size=(len(names), 3)) + 2 * np.eye(3)[labels]
    metrics = measure(logits, labels)
    return FoldResult(
        number=number,
        best_epoch=number,
        metrics={name: getattr(metrics, name) for name in COMPARED}
        | {"known": {"train": 0, "val": 0, "test": len(names)}, "failures": {}}
        | changes,
        names=names,
        labels=labels,
        logits=logits,
    )


def test_results_on_volumes_are_said_to_be() -> None:
    folds = [fold(number, list(names), number, dims=3) for number, names in ((1, "abc"), (2, "def"))]
    evaluation = out_of_fold(folds, classifier="run", data="data", classes=CLASSES, groups={})
    assert evaluation.to_dict()["dims"] == 3
    text = as_text(evaluation.tables())
    assert text.count("volumes") == 4  # all of them, columns of folds and of classes, the note
    assert "image" not in text


def test_folds_are_joined_by_name_and_their_spread_is_told(tmp_path: Path) -> None:
    first = fold(1, [f"{index:02}" for index in range(0, 30, 2)], 0)
    second = fold(2, [f"{index:02}" for index in range(1, 31, 2)], 1, failures={"x": "cut short"})
    joined = out_of_fold(
        [first, second], classifier="run", data="data", classes=CLASSES, groups={"00": "p", "01": "q"}
    )
    assert joined.names == [f"{index:02}" for index in range(30)]
    assert joined.fold_of.tolist() == [1, 2] * 15
    labels = np.stack([first.labels, second.labels], axis=1).ravel()
    np.testing.assert_array_equal(joined.labels, labels)

    joined.save(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == [
        *("path", "label", "group", "fold", "prediction", "probability", "p:a", "p:b", "p:c")
    ]
    assert table["group"].to_pylist()[:3] == ["p", "q", ""]
    probabilities = np.stack([table[f"p:{name}"].to_numpy() for name in CLASSES], axis=1)
    told = joined.to_dict()
    assert told["accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert told["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    accuracies = [row["accuracy"] for row in told["folds"]]
    assert told["between_folds"]["accuracy"] == {
        "mean": pytest.approx(np.mean(accuracies)),
        "std": pytest.approx(np.std(accuracies, ddof=1)),
    }
    assert told["known"] == {"train": 0, "val": 0, "test": 30}
    assert told["failures"] == {"x": "cut short"}
    assert any("the ensemble of them has seen all" in warning for warning in told["warnings"])
    text = str(joined)
    assert "standard deviation" in text
    assert "best" in text  # the heading of the epochs


def test_a_metric_that_is_undefined_in_a_fold_is_left_out_of_the_mean() -> None:
    folds = [fold(1, ["1", "2", "3"], 0, macro_auroc=None), fold(2, ["4", "5", "6"], 1, macro_auroc=0.75)]
    joined = out_of_fold(folds, classifier="run", data="data", classes=CLASSES, groups={})
    assert joined.to_dict()["between_folds"]["macro_auroc"] == {"mean": 0.75, "std": None}
    assert "–" in str(joined)
