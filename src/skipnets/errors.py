"""The one kind of error that a person can cause and mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: one line that names it and says what would be right.

    The command line prints the message without a traceback and exits with status 2.
    """


class MissingExtraError(UserError):
    """Libraries that a feature needs are not installed."""


def missing_extra(extra: str) -> MissingExtraError:
    """The error for a feature whose libraries are not installed, with the command that brings them."""
    return MissingExtraError(f'this needs the extra "{extra}": pip install "skipnets[{extra}]"')


def near_matches(wrong: str, known: Iterable[str]) -> str:
    """Words to append: "; did you mean a, b?", or "" where no known name is near the wrong one."""
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
