"""Tables that look the same on a terminal, from `print`, and in a notebook.

Names of classes and files are untrusted; every cell goes through `printable`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from skipnets.terminal import TEXT_WIDTH, printable, printable_lines, wrapped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["Display", "as_html", "as_text", "cell", "make_table", "number_text", "properties_table"]

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

    Args:
        headings: Heading → alignment of its column, "left" or "right".
        rows: Texts of the cells; the first column wraps if it is too long.
        title: Title above the table.
    """
    from rich.table import Table

    table = Table(title=_title(title), title_justify="left", box=None, pad_edge=False)
    for index, (heading, side) in enumerate(headings.items()):
        table.add_column(cell(heading), justify=side, overflow="ellipsis" if index else "fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


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
