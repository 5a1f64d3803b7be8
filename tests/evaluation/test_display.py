"""The tables of an evaluation: each metric once, and a dash where a class has none."""

from __future__ import annotations

from typing import Any

from skipnets.evaluation.display import metric_tables
from skipnets.tables import as_text

METRICS: dict[str, Any] = {
    "images": 1234,
    "data": "pets",
    "split": "test",
    "accuracy": 0.9125,
    "accuracy_interval": [0.9, 0.92],
    "balanced_accuracy": 0.875,
    "top5": None,
    "nll": 0.25,
    "ece": 0.015,
    "macro_auroc": None,
    "classes": [
        {"name": "cat", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "auroc": 0.75, "support": 1234},
        {"name": "dog", "precision": None, "recall": None, "f1": None, "auroc": None, "support": 0},
    ],
    "warnings": ["few images"],
}


def test_what_people_read() -> None:
    lines = [line.split() for line in as_text(metric_tables(METRICS)).splitlines()]
    for row in (
        "images 1,234 (pets, test)",
        "accuracy 91.25% (95% interval 90.00% to 92.00%)",
        "balanced accuracy 87.50%",
        "negative log-likelihood 0.2500",
        "expected calibration error (ECE) 1.50%",
        "macro AUROC –",
        "cat 0.500 0.250 0.333 0.750 1,234",
        "dog – – – – 0",
        "note few images",
    ):
        assert row.split() in lines, row


def test_top_5_is_shown_where_there_is_one() -> None:
    assert "top-5" not in as_text(metric_tables(METRICS))
    assert "top-5 accuracy" in (text := as_text(metric_tables({**METRICS, "top5": 0.995})))
    assert "99.50%" in text
