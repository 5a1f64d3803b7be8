"""The report of a run with several labels an image."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.labels import LABELS

from skipnets.report import write_report
from skipnets.training import Run


def test_the_page_holds_what_was_measured_and_escapes_names(label_run: Run, tmp_path: Path) -> None:
    page = write_report(label_run, tmp_path / "report.html", device="cpu").read_text(encoding="utf-8")
    auroc = label_run.scores["macro"]["auroc"]["value"]
    assert f"<strong>{auroc:.4f}</strong>" in page
    low, high = label_run.scores["macro"]["auroc"]["interval"]
    assert f"{low:.4f} to {high:.4f}" in page
    assert "chosen by the highest F1 score on" in page
    assert "<b>2</b>" not in page
    assert "&lt;b&gt;2&lt;/b&gt;" in page
    table = page[page.index('class="classes labels stacked"') :]
    assert len(re.findall(r"<tr><th>", table[: table.index("</tbody>")])) == len(LABELS) + 1
    assert page.count("data:image/jpeg") > 4
    assert "best " in page
    assert "Mean average precision" in page
