"""The figures in the repository are those that docs/drawings.py draws."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "guide" / "figures").glob("*.svg")}


def test_pages_show_every_figure() -> None:
    shown = {
        name
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"\(\S*figures/([\w-]+)\.svg\)", page.read_text(encoding="utf-8"))
    }
    assert shown == set(FIGURES)


# `selection` is a simulation of half a minute; test_mistakes.py tests what it simulates.
@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"selection"}))
def test_a_figure_is_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "drawings", raising=False)
    import drawings

    committed, drawn = FIGURES[name], drawings.svg(name)
    number = re.compile(r"(?<![\w#-])-?\d+\.?\d*(?:e-?\d+)?")
    words = re.compile(r"<text[^>]*>([^<]*)</text>")
    assert words.findall(committed) == words.findall(drawn)
    found = [np.array(number.findall(text), dtype=float) for text in (committed, drawn)]
    np.testing.assert_allclose(*found, atol=0.02)
