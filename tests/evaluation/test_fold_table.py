"""The table of folds."""

from __future__ import annotations

from skipnets.evaluation.fold_table import fold_table
from skipnets.evaluation.out_of_fold import spread
from skipnets.tables import as_text


def test_each_fold_and_their_spread_have_a_row() -> None:
    folds = [
        {"fold": 1, "images": 1000, "best_epoch": 3, "mae": 2.0, "r2": None},
        {"fold": 2, "images": 1001, "best_epoch": 4, "mae": 4.0, "r2": None},
    ]
    columns = {"mae": ("MAE", "{:.1f}".format), "r2": ("R²", "{:.3f}".format)}
    of_all = {name: spread([row[name] for row in folds]) for name in columns}  # type: ignore[misc]
    lines = as_text([fold_table(folds, of_all, columns, heading="age: fold")]).splitlines()
    assert [line.split() for line in lines] == [
        ["age:", "fold", "images", "best", "epoch", "MAE", "R²"],
        ["1", "1,000", "3", "2.0", "–"],
        ["2", "1,001", "4", "4.0", "–"],
        ["mean", "3.0", "–"],
        ["standard", "deviation", "1.4", "–"],
    ]
