"""Tables that look the same on a terminal, from `print`, and in a notebook.

Names of classes and files are untrusted; every cell goes through `printable`.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from skipnets.terminal import TEXT_WIDTH, printable, printable_lines, wrapped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Display",
    "FittingTable",
    "as_html",
    "as_text",
    "cell",
    "make_table",
    "number_text",
    "percent",
    "properties_table",
]

WIDE = 400
_HTML = '<pre style="font-family: monospace; line-height: 1.3; overflow-x: auto">{code}</pre>'


def cell(value: str) -> Text:
    """Untrusted text as a table cell, without interpreting markup."""
    from rich.text import Text

    return Text(printable(value))


def _title(value: str | None) -> Text | None:
    """A title of one or several lines, without interpreting markup; Rich's own style for titles."""
    from rich.text import Text

    return Text(printable_lines(value), style="table.title") if value else None


def make_table(
    headings: Mapping[str, Literal["left", "right"]], rows: Iterable[Sequence[str]], *, title: str = ""
) -> Table:
    """Create a table without borders.

    Where it would be wider than 80 columns, headings are broken into lines that are no wider than the cells
    below them. A terminal that is still too narrow breaks columns on the left side, which are texts.

    Args:
        headings: Heading → alignment of its column, "left" for texts or "right" for numbers.
        rows: Texts of the cells.
        title: Title above the table.
    """
    from rich.table import Table
    from rich.text import Text

    texts = [list(map(printable, row)) for row in rows]
    table = Table(title=_title(title), title_justify="left", box=None, pad_edge=False)
    for heading, side in zip(_fitted(list(map(printable, headings)), texts), headings.values(), strict=True):
        table.add_column(Text(heading), justify=side, overflow="fold", no_wrap=side == "right")
    for row in texts:
        table.add_row(*map(Text, row))
    return table


def _fitted(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The headings, broken into lines where the table would be wider than 80 columns otherwise."""
    if _width(headings, rows) <= TEXT_WIDTH:
        return list(headings)
    return [
        "\n".join(textwrap.wrap(heading, max(cells, 1), break_long_words=False)) or heading
        for heading, cells in zip(headings, _widths([""] * len(headings), rows), strict=True)
    ]


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns of the terminal that each column of a table takes."""
    from rich.cells import cell_len

    return [
        max(map(cell_len, [*heading.split("\n"), *(row[index] for row in rows if index < len(row))]))
        for index, heading in enumerate(headings)
    ]


def _width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that a table takes: two lie between its columns."""
    return sum(_widths(headings, rows)) + 2 * (len(headings) - 1)


class FittingTable:
    """A table that does without some columns where the terminal is too narrow for all of them, and says so.

    Args:
        headings: As of `make_table`.
        rows: Texts of the cells, one for each heading.
        optional: Headings of the columns that are left out, in this order, as far as it takes.
        title: Title above the table.
        dim: Positions of rows that are shown dim.
    """

    def __init__(
        self,
        headings: Mapping[str, Literal["left", "right"]],
        rows: Iterable[Sequence[str]],
        *,
        optional: Sequence[str],
        title: str = "",
        dim: Collection[int] = (),
    ) -> None:
        self.headings = headings
        self.rows = [list(map(printable, row)) for row in rows]
        self.optional = optional
        self.title = title
        self.dim = dim

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        left_out: list[str] = []
        for heading in (*self.optional, ""):
            shown = {name: side for name, side in self.headings.items() if name not in left_out}
            rows = [
                [text for name, text in zip(self.headings, row, strict=True) if name in shown]
                for row in self.rows
            ]
            if not heading or _width(_fitted(list(shown), rows), rows) <= options.max_width:
                break
            left_out.append(heading)
        table = make_table(shown, rows, title=self.title)
        for position in self.dim:
            table.rows[position].style = "dim"
        yield table
        if left_out:
            yield Text(f"(without {', '.join(left_out)}: the terminal is too narrow)", style="dim")


def properties_table(
    rows: Mapping[str, str] | Iterable[tuple[str, str]], *, title: str | None = None
) -> Table:
    """Create a table of names and values, whose values are wrapped to 80 columns in all.

    A word that is longer, such as a path, stays whole unless the terminal is too narrow for it.

    Args:
        rows: Names and values; as pairs, a name may come more than once.
        title: Title above the table.
    """
    from rich.table import Table
    from rich.text import Text

    pairs = [
        (printable(name), printable(value))
        for name, value in (rows.items() if isinstance(rows, Mapping) else rows)
    ]
    width = max(TEXT_WIDTH - max((len(name) for name, _ in pairs), default=0) - 2, TEXT_WIDTH // 4)
    table = Table(title=_title(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(wrapped(value, width)))
    return table


def as_text(tables: Iterable[RenderableType], *, width: int = WIDE) -> str:
    """Render tables as plain text, one below another."""
    from rich.console import Console

    page = io.StringIO()
    # In a notebook, Rich would show what it is to write to a file.
    console = Console(file=page, width=width, color_system=None, force_jupyter=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines())


def as_html(tables: Iterable[RenderableType], *, width: int = 160) -> str:
    """Render tables as an HTML fragment for a notebook."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, record=True, force_jupyter=False)
    for table in tables:
        console.print(table)
    return console.export_html(inline_styles=True, code_format=_HTML)


class Display:
    """Mixin for objects that `print` and notebooks show as tables."""

    def tables(self) -> Sequence[RenderableType]:
        """Tables that `print` and notebooks show."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.tables())

    def _repr_html_(self) -> str:
        return as_html(self.tables())


def number_text(value: float) -> str:
    """A measured number as it is shown: with five digits, or all of a larger whole part."""
    return f"{value:.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"


def percent(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A share as a percentage, "8.33%"; a dash where it is undefined.

    Args:
        value: From 0 to 1, or a difference of two shares.
        digits: Digits after the point: two for a metric, one for the probability of an image.
        sign: Whether a positive one has a plus sign.
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}%}"
