"""Output of commands: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skipnets.axes import INPUTS
from skipnets.errors import UserError
from skipnets.files import check_can_write, is_file, is_same
from skipnets.progress import LoggedProgress
from skipnets.tables import as_text
from skipnets.terminal import json_text, printable


def print_json(value: Any) -> None:
    """Print a JSON document on standard output."""
    sys.stdout.write(json_text(value) + "\n")


def print_paths(*paths: Path | None) -> None:
    """Print the paths of written files on standard output, one per line; None is skipped."""
    sys.stdout.writelines(f"{printable(str(path))}\n" for path in paths if path is not None)


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables on standard output; if it is not a terminal, at full width, so nothing is truncated."""
    console = Console()
    if not console.is_terminal:
        sys.stdout.write(as_text(tables) + "\n")
        return
    for table in tables:
        console.print(table)


def check_outputs(
    *paths: Path | None, folder: Path | None = None, read: Iterable[str | Path | None] = ()
) -> None:
    """Check that results can be written, before the slow work; None is skipped.

    Args:
        paths: Files, or what may be either.
        folder: A folder.
        read: What the command reads, which no file may replace.

    Raises:
        UserError: If one cannot.
    """
    for path in paths:
        if path is not None:
            check_can_write(path)
            if is_file(path) and any(one is not None and is_same(path, one) for one in read):
                raise UserError(f"{path}: is what this command reads; write to another file")
    if folder is not None:
        check_can_write(folder, folder=True)


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar, or lines in a log; yields a function of done, total and a new description."""
    with _progress_bar() as bar:
        if bar.disable:
            yield LoggedProgress(description)
            return
        task = bar.add_task(description, total=None)

        def update(done: int, total: int | None = None, description: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=description)

        yield update


def _progress_bar() -> Progress:
    """A progress bar on standard error, if it is a terminal; it is removed at the end."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_failures(failures: Mapping[str, str], *, of: int, dims: int = 2) -> None:
    """Print unreadable images with reasons on standard error.

    Args:
        failures: Name → reason.
        of: Total number of images.
        dims: Spatial axes of these: 3 of volumes, 1 of signals.
    """
    with suppress(OSError):  # where standard error is full or closed, the exit status says it
        sys.stderr.write(f"{len(failures)} of {of} {INPUTS[dims]} failed:\n")
        # Most reasons begin with the name already.
        sys.stderr.writelines(
            f"  {printable(name)}: {printable(reason.removeprefix(f'{name}: '))}\n"
            for name, reason in failures.items()
        )
