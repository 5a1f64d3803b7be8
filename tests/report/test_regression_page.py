"""The report of a run that predicts numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.helpers.disks import TARGETS

from skipnets.report import write_report
from skipnets.report.regression_results import read_regression_results
from skipnets.training import Run


@pytest.fixture(scope="module")
def page(number_run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(number_run, path, device="cpu").read_text(encoding="utf-8")


def test_the_page_holds_what_was_measured_and_escapes_names(number_run: Run, page: str) -> None:
    for row in number_run.scores["targets"]:
        assert f"<strong>{row['r2']:.3f}</strong>" in page
        low, high = row["intervals"]["mae"]
        assert f"{row['mae']:.4g} <small>{low:.4g} to {high:.4g}</small>" in page
    assert "<b>level</b>" not in page
    assert "&lt;b&gt;level&lt;/b&gt;" in page
    assert page.count("<svg") >= 4 + 3  # scatter and residuals of two targets, and of training
    assert page.count("data:image/jpeg") > 4
    assert "MAE" in page


def test_the_largest_errors_come_first(number_run: Run, page: str) -> None:
    results = read_regression_results(number_run.folder)
    relative = np.abs(results.predicted - results.numbers) / results.numbers.std(0)
    shown = re.findall(r'class="file" title="([^"]+)"', page)
    order = np.argsort(-relative.max(1), kind="stable")[:12]
    assert shown == [results.names[index] for index in order]
    worst, target = int(order[0]), int(relative[order[0]].argmax())
    first = page[page.index("<article>") : page.index("</article>")]
    assert f"true {results.numbers[worst, target]:.5g}" in first
    assert TARGETS[target].replace("<", "&lt;").replace(">", "&gt;") in first
