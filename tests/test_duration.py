from __future__ import annotations

import pytest

from skipnets.duration import format_duration, parse_duration
from skipnets.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("5 min", 300), ("1h30m", 5400), ("1.5h", 5400), ("1h5s", 3605), (45, 45)],
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "0", "-3s", "nan", "inf", "5m3h"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"^time='.*': must be a time such as 90s, 5m or 1h30m$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.6, "9 s"), (60, "1 min"), (269.7, "4 min 30 s"), (3600, "1 h"), (7500, "2 h 5 min"), (3599.9, "1 h")],
)
def test_times_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
