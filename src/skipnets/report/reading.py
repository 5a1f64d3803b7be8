"""What readers of an evaluation's files share: its task, and one line where they are missing or damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow

from skipnets import run_folder
from skipnets.errors import UserError, one_line

__all__ = ["evaluated_task", "reading"]


def evaluated_task(folder: Path) -> str | None:
    """The task of the evaluation that a folder holds; None if none can be read."""
    try:
        return str(run_folder.read_evaluation(folder).get("task", "single-label"))
    except (OSError, UserError):
        return None


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say what is wrong with evaluation.json and predictions.parquet of a folder, and what to do.

    Raises:
        UserError: If they are missing or damaged, or do not match.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{folder}: {run_folder.EVALUATION} or {run_folder.PREDICTIONS} is missing or damaged, or they "
            f"do not match ({one_line(error)}); skipnets evaluate {folder} --output {folder} "
            "writes them again"
        ) from error
