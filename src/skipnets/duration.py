"""Read and write lengths of time, such as "5m"."""

from __future__ import annotations

import math
import re

from skipnets.errors import UserError

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_PART = r"(\d+(?:\.\d+)?)"
_PATTERN = re.compile(rf"(?:{_PART}h)?(?:{_PART}m(?:in)?)?(?:{_PART}s)?")


def parse_duration(value: str | float, *, option: str = "time") -> float:
    """A length of time in seconds.

    Args:
        value: Such as "5m", "90s", "1h30m" or "1.5h", or a number of seconds.
        option: Name of the option for the message.

    Raises:
        UserError: If it is none, or not above 0.
    """
    text = str(value).strip().lower().replace(" ", "")
    match = _PATTERN.fullmatch(text)
    if match and any(match.groups()):
        seconds = sum(
            float(part) * unit
            for part, unit in zip(match.groups(), _UNITS.values(), strict=True)
            if part is not None
        )
    else:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{option}={str(value)!r}: must be a time such as 90s, 5m or 1h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """A length of time for people: "9 s", "4 min 30 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
