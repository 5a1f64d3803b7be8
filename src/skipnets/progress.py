"""Say in a log how far long work is, where no progress bar shows it."""

from __future__ import annotations

import logging
import time

__all__ = ["LoggedProgress"]

_MOST = 60.0

logger = logging.getLogger("skipnets")


class LoggedProgress:
    """Logs a line once the work has taken a while, and then at growing intervals, at most a minute apart.

    Call it with the number of units done, often.

    Args:
        description: What is being done, such as "evaluating".
        first: Seconds until the first line.
    """

    def __init__(self, description: str, *, first: float = 5.0) -> None:
        self.description = description
        self._started = time.monotonic()
        self._done = 0
        self._interval = first
        self._due = self._started + first

    def __call__(self, done: int, total: int | None = None, description: str | None = None) -> None:
        """Log how far it is, if it is time.

        Args:
            done: Units of work that are done.
            total: All units, if that is known.
            description: What is being done from now on.
        """
        self.description = description or self.description
        now = time.monotonic()
        if done < self._done:  # another step, which counts anew
            self._started = now
        self._done = done
        if now < self._due:
            return
        text = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        if done and now > self._started:
            rate = done / (now - self._started)
            text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.2g}/s"
        logger.info("%s: %s", self.description, text)
        self._interval = min(2 * self._interval, _MOST)
        self._due = now + self._interval
