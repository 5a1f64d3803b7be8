"""Text from outside (names of files and classes, metadata, messages of libraries) made harmless to show.

A name may hold escape sequences that rewrite a terminal, line breaks that forge lines of a log, bytes that
are not UTF-8, or a formula that a spreadsheet runs. What the user sees is the name with these escaped.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import sys
import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _csv import Writer as CSVWriter

__all__ = [
    "TEXT_WIDTH",
    "LogHandler",
    "csv_text",
    "flowing",
    "from_csv_text",
    "json_text",
    "message_lines",
    "printable",
    "printable_lines",
    "tolerate",
    "wrapped",
]

TEXT_WIDTH = 80
"""Columns that sentences are wrapped to; tables of numbers may be wider."""

# What a spreadsheet takes for a formula. Numbers with a sign are none.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d*[.,]?\d+(?:[eE][+-]?\d+)?$)")


def printable(text: str) -> str:
    """Escape control characters, line breaks and what is not Unicode; letters of all scripts stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else ascii(letter)[1:-1]
        for letter in text
    )


def printable_lines(text: str) -> str:
    """Like `printable` for a text of several lines that this package has laid out."""
    return "\n".join(map(printable, text.split("\n")))


def wrapped(text: str, width: int = TEXT_WIDTH, *, indent: int = 0) -> str:
    """Break text between words into lines; a word that is longer than a line, such as a path, stays whole.

    A command of this program stays one line, to be copied.

    Args:
        text: One line.
        width: Columns of a line.
        indent: Columns of space before the second and later lines.
    """
    if text.startswith("skipnets "):
        return text  # a command, which broken would be two
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def flowing(text: str) -> str:
    """Text without the line breaks within its paragraphs; indented ones, such as commands, keep theirs."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else " ".join(paragraph.split("\n"))
        for paragraph in paragraphs
    )


def message_lines(message: str, stream: TextIO) -> str:
    """A message as it is shown: wrapped between words on a terminal, one line in a log, which is searched."""
    text = printable(" ".join(message.splitlines()))
    return wrapped(text, shutil.get_terminal_size().columns, indent=2) if stream.isatty() else text


def json_text(value: Any) -> str:
    """A JSON document of several lines; characters that a terminal would obey are escaped as JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(
        line if line.isprintable() else "".join(map(_json_letter, line)) for line in text.split("\n")
    )


def _json_letter(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def csv_text(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would take for a formula begins with an apostrophe."""
    is_formula = isinstance(value, str) and _FORMULA.match(value.lstrip("'"))
    return f"'{value}" if is_formula else value


def csv_rows(file: TextIO) -> CSVWriter:
    r"""A writer of CSV with "\n" after each row, which quotes cells with any line break.

    Python before 3.13 would leave "\r" unquoted then, and not read the row again.
    """
    return csv.writer(_Lines(file))


class _Lines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def from_csv_text(value: str) -> str:
    """The inverse of `csv_text`."""
    return value[1:] if value.startswith("'") and _FORMULA.match(value.lstrip("'")) else value


def tolerate(stream: TextIO | None) -> None:
    """Let a stream escape what its encoding does not have, instead of losing all output for it."""
    reconfigure = getattr(stream, "reconfigure", None)  # streams that tests put in their place have none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes the messages of the log harmlessly on standard error; where that is no terminal, a line each."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        """The message as it is shown."""
        return message_lines(super().format(record), self.stream)
