"""Results of folds with several labels an image, joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from skipnets.evaluation.display import metric_tables
from skipnets.evaluation.label_out_of_fold import LabelFoldResult, fold_limits, labels_out_of_fold
from skipnets.evaluation.multi_label import measure_labels
from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation
from skipnets.evaluation.thresholds import ThresholdRule
from skipnets.tables import as_text

CLASSES = ("a", "b")


def fold(folder: Path, number: int, thresholds: tuple[float, ...], *, shift: float = 0.0) -> LabelFoldResult:
    """A fold's model, evaluated on 40 images, whose files were written and read again."""
    generator = np.random.default_rng(number)
    labels = (generator.random((40, 2)) < 0.4).astype(np.float32)
    logits = (generator.normal(size=(40, 2)) + 2 * labels - 1 + shift).astype(np.float32)
    labels[:3, 1] = np.nan
    evaluation = MultiLabelEvaluation(
        classifier=f"fold-{number}",
        data="data",
        split="test",
        classes=CLASSES,
        thresholds=thresholds,
        metrics=measure_labels(logits, labels, thresholds, resamples=20),
        names=[f"{index:02}" for index in range(number - 1, 80, 2)],
        labels=labels,
        logits=logits,
        temperature=1.0,
        groups=None,
        failures={f"x{number}": "cut short"},
        known={"train": 0, "val": 0, "test": 40},
    )
    evaluation.save(folder / str(number))
    return LabelFoldResult.read(folder / str(number), number=number, best_epoch=number)


@pytest.fixture
def folds(tmp_path: Path) -> list[LabelFoldResult]:
    return [fold(tmp_path, 1, (0.3, 0.4)), fold(tmp_path, 2, (0.6, 0.7), shift=1.0)]


def joined(folds: list[LabelFoldResult], **changes: Any) -> Any:
    about: dict[str, Any] = {"classifier": "run", "data": "data", "classes": CLASSES, "groups": None}
    return labels_out_of_fold(folds, **(about | {"rule": ThresholdRule.parse("f1")} | changes))


def test_each_image_is_judged_at_the_threshold_of_its_own_fold(folds: list[LabelFoldResult]) -> None:
    together = joined(folds)
    assert together.names == [f"{index:02}" for index in range(80)]
    assert together.fold_of.tolist() == [1, 2] * 40
    for index in range(2):
        truth, found, scores = [], [], []
        for position in range(80):
            source, row = folds[position % 2], position // 2
            if np.isfinite(mark := source.labels[row, index]):
                truth.append(mark)
                scores.append(source.logits[row, index])
                found.append(expit(scores[-1]) >= ((0.3, 0.4), (0.6, 0.7))[position % 2][index])
        assert together.metrics.labels["sensitivity"][index] == pytest.approx(recall_score(truth, found))
        assert together.metrics.labels["f1"][index] == pytest.approx(f1_score(truth, found))
        assert together.metrics.labels["auroc"][index] == pytest.approx(roc_auc_score(truth, scores))
        # The ensemble's threshold is the best of all on these predictions.
        at = [f1_score(truth, expit(scores) >= threshold) for threshold in np.linspace(0, 1, 41)]
        chosen = f1_score(truth, expit(scores) >= together.thresholds[index])
        assert chosen >= max(at) - 1e-9


def test_metrics_of_the_folds_and_their_spread_are_told(folds: list[LabelFoldResult], tmp_path: Path) -> None:
    together = joined(folds, groups={"00": "p", "01": "p"})
    together.save(tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    areas = []
    for source in folds:
        known = np.isfinite(source.labels[:, 1])
        areas.append(
            [
                roc_auc_score(source.labels[of, k], source.logits[of, k])
                for k, of in enumerate((slice(None), known))
            ]
        )
    means = np.mean(areas, axis=1)
    assert [row["auroc"] for row in written["folds"]] == pytest.approx(means.tolist())
    assert written["between_folds"]["auroc"]["std"] == pytest.approx(np.std(means, ddof=1))
    of_b = written["classes"][1]["between_folds"]["auroc"]
    assert (of_b["mean"], of_b["std"]) == pytest.approx(
        (np.mean([row[1] for row in areas]), np.std([row[1] for row in areas], ddof=1))
    )
    assert written["groups"] == 79
    assert written["failures"] == {"x1": "cut short", "x2": "cut short"}
    assert written["known"] == {"train": 0, "val": 0, "test": 80}
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == ["path", "group", "fold", "y:a", "y:b", "p:a", "p:b"]
    limits = fold_limits(written["folds"], table["fold"].to_numpy())
    np.testing.assert_array_equal(limits[:2], [[0.3, 0.4], [0.6, 0.7]])
    shown = " ".join(as_text(metric_tables(written)).split())
    assert "standard deviation" in shown
    assert f"{means[0]:.3f}" in shown
    assert "has seen all of these images" in shown
