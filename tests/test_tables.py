"""Tables show what they were given, and nothing in it can steer a terminal or become markup."""

from __future__ import annotations

import pytest

from skipnets.tables import Display, FittingTable, as_text, make_table, percent, properties_table
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


def test_headings_that_make_a_table_too_wide_are_broken_and_numbers_are_not() -> None:
    headings = {"the name of the thing": "left", **dict.fromkeys(["weight decay of it", "images"], "right")}
    row = ["x" * 55, "0.5 to 0.75", "12"]
    [first, second, cells] = as_text([make_table(headings, [row])]).splitlines()
    assert first.split() == ["weight"]
    assert second.split() == ["the", "name", "of", "the", "thing", "decay", "of", "it", "images"]
    assert len(cells) == 55 + 2 + 11 + 2 + 6 <= 80
    narrow = as_text([make_table(headings, [row])], width=50).splitlines()
    assert max(map(len, narrow)) <= 50
    assert any("0.5 to 0.75" in line for line in narrow)
    assert "".join(narrow).count("x") == 55
    short = {"a heading of two": "left", "and another": "right"}
    assert as_text([make_table(short, [["1", "2"]])]).splitlines()[0] == "a heading of two  and another"


def test_a_narrow_terminal_does_without_optional_columns_and_says_so() -> None:
    headings = {"name": "left", "formula": "left", "kind": "left", "count": "right"}
    rows = [["conv0", "3×3×3×24", "convolution", "648"], ["[b]", "", "蜂蜂", "1"]]
    table = FittingTable(headings, rows, optional=["formula", "kind"], title="[t]", dim=[1])
    assert as_text([table]) == as_text([make_table(headings, rows, title="[t]")])
    for width, left_out in ((35, []), (34, ["formula"]), (25, ["formula"]), (24, ["formula", "kind"])):
        lines = as_text([table], width=width).splitlines()
        shown = [name for name in headings if name not in left_out]
        assert lines[1].split() == shown
        said = " ".join(" ".join(lines[4:]).split())
        assert said == (f"(without {', '.join(left_out)}: the terminal is too narrow)" if left_out else "")
    assert "[b]" in as_text([table], width=10)


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (1 / 12, {}, "8.33%"),
        (1 / 12, {"digits": 1}, "8.3%"),
        (0.05, {"sign": True}, "+5.00%"),
        (-0.05, {"sign": True}, "-5.00%"),
        (None, {}, "–"),
        (float("nan"), {}, "–"),
    ],
)
def test_percent(value: float | None, options: dict[str, object], text: str) -> None:
    assert percent(value, **options) == text  # type: ignore[arg-type]
