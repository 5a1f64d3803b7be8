"""How commands print: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(table: Table) -> None:
    """A table on standard output; where that is no terminal, as wide as it likes, so nothing is cut off."""
    console = Console()
    Console(width=console.width if console.is_terminal else 400).print(table)


def properties_table(rows: dict[str, str], *, title: str | None = None) -> Table:
    """Two columns, a name and what it is."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def progress_bar() -> Progress:
    """A bar on standard error, if that is a terminal; it leaves nothing behind."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_failures(failures: Mapping[str, str], *, of: int) -> None:
    """What could not be read and why, on standard error.

    Args:
        failures: What it is called → the reason.
        of: How many there were to be read.
    """
    sys.stderr.write(f"{len(failures)} of {of} images failed:\n")
    # Most reasons begin with the name already.
    sys.stderr.writelines(
        f"  {name}: {reason.removeprefix(f'{name}: ')}\n" for name, reason in failures.items()
    )
