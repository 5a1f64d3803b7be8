"""How commands print: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skipnets.tables import as_text, printable


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_paths(*paths: Path | None) -> None:
    """The files that were written, one a line on standard output; None stands for one that was not."""
    sys.stdout.writelines(f"{path}\n" for path in paths if path is not None)


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Tables on standard output; where that is no terminal, as wide as they are, so nothing is cut off."""
    console = Console()
    if not console.is_terminal:
        sys.stdout.write(as_text(tables) + "\n")
        return
    for table in tables:
        console.print(table)


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """A progress bar; what it gives is called with done and total, and perhaps a new description."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int, description: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=description)

        yield update


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
        f"  {printable(name)}: {printable(reason.removeprefix(f'{name}: '))}\n"
        for name, reason in failures.items()
    )
