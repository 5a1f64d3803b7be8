"""Copies of what a program hands to `train`."""

from __future__ import annotations

import copy
from typing import TypeVar

from skipnets.errors import UserError, one_line

__all__ = ["own_copy"]

T = TypeVar("T")


def own_copy(value: T, option: str) -> T:
    """A deep copy of what a program handed over, so that what is done with it leaves the original as it is.

    Args:
        value: Any object.
        option: The argument of `train` that it was given as.

    Raises:
        UserError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(value)
    except Exception as error:  # of an open file, a lock, or whatever an object's own __deepcopy__ raises
        raise UserError(
            f"{option}: must be something that copy.deepcopy can copy ({one_line(error)})"
        ) from error
