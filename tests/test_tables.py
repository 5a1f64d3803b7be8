"""Tables show what they were given, and nothing in it can steer a terminal or become markup."""

from __future__ import annotations

import pytest

from skipnets.tables import Display, as_text, make_table, properties_table
from skipnets.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größer 蜂 a\u3000b", "größer 蜂 a\u3000b"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202ereversed", "\\u202ereversed"),
        ("not\udcffutf8", "not\\udcffutf8"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_names_are_no_markup() -> None:
    table = make_table({"class": "left", "images": "right"}, [["[red]a", "1"], ["[/b]\x1b", "1,000"]])
    assert as_text([table]).split() == ["class", "images", "[red]a", "1", "[/b]\\x1b", "1,000"]
    assert as_text([properties_table({"[i]": "[link=x]"})]).split() == ["[i]", "[link=x]"]


class _Shown(Display):
    def tables(self) -> list[object]:  # type: ignore[override]
        return [properties_table({"name": "<b>&x" * 40})]


def test_print_and_notebook() -> None:
    assert str(_Shown()) == "name  " + "<b>&x" * 40
    html = _Shown()._repr_html_()
    assert "&lt;b&gt;&amp;x" in html
    assert "<b>" not in html


def test_sentences_fit_80_columns_and_paths_stay_whole() -> None:
    path = "folder/" * 20
    rows = [("warning", "word " * 40), ("warning", f"first {path} last"), ("run", path)]
    text = as_text([properties_table(rows)])
    assert [line for line in text.splitlines() if len(line) > 80] == [f"         {path}", f"run      {path}"]
    assert text.split() == [word for name, value in rows for word in (name, *value.split())]
