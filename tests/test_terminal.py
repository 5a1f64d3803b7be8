"""Text from outside does nothing to whoever reads it, and nothing is lost for it."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipnets.terminal import (
    LogHandler,
    csv_text,
    from_csv_text,
    json_text,
    message_lines,
    printable,
    printable_lines,
    tolerate,
    wrapped,
)

HARMLESS = ("cat", "Straße 7", "猫", "a b", "\u3000", "a-b", "-1", "+1.5e3", "it's", "'quoted'", "")


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text
    assert csv_text(text) == text
    assert from_csv_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff.png", r"\udcff.png"),
        ("[/x]", "[/x]"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable_lines(f"first\n{text}").startswith("first\n")


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_shown_and_stored(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    document = json_text({"name": text})
    document.encode()
    assert all(line.isprintable() for line in document.split("\n"))
    assert json.loads(document) == {"name": text}


FORMULAS = ("=1+1", "@SUM(1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "'=1", "''=1", "-", "=")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    written = csv_text(text)
    assert isinstance(written, str)
    assert written.startswith("'")
    assert from_csv_text(written) == text


@given(st.text())
def test_a_cell_comes_back(text: str) -> None:
    written = csv_text(text)
    assert isinstance(written, str)
    assert from_csv_text(written) == text
    file = io.StringIO()
    csv.writer(file).writerow([written])


def test_values_that_are_no_text_stay() -> None:
    assert [csv_text(value) for value in (None, 1, -1.5)] == [None, 1, -1.5]


def test_a_strict_stream_loses_nothing() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    tolerate(stream)
    stream.write("Straße \udcff\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"Stra\\xdfe \\udcff\n"  # type: ignore[attr-defined]
    tolerate(None)


def test_the_log_is_one_line_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = LogHandler()
    handler.handle(logging.LogRecord("skipnets", 20, "", 0, "left out: %s", ("a\n\x1b[2Jb",), None))
    assert stream.getvalue() == "left out: a \\x1b[2Jb\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_are_wrapped_on_a_terminal_and_one_line_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    message = "data: no images in\x1b here\nat all"
    assert message_lines(message, io.StringIO()) == r"data: no images in\x1b here at all"
    assert message_lines(message, _Terminal()) == "data: no images\n  in\\x1b here at all"


@given(st.text(st.sampled_from("ab /-"), max_size=60), st.integers(8, 30))
def test_wrapping_changes_nothing_but_spaces_and_breaks_no_word(text: str, width: int) -> None:
    lines = wrapped(text, width, indent=2).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
