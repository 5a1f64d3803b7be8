"""What one client may ask, and how much may wait."""

from __future__ import annotations

from dataclasses import dataclass, fields

from skipnets.data.decoding import MAX_PIXELS
from skipnets.errors import UserError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that keep a server answering whatever its clients send.

    Args:
        body_bytes: The most that a request may hold.
        files: The most images in a request.
        pixels: The most in an image. It is judged by the header, before anything is decoded.
        queue: The most images that are being read, waiting or computed. A request beyond that is refused
            (503) and told when to come again.
        seconds: The longest that a request may take, its upload included.

    Raises:
        UserError: If a value is impossible.
    """

    body_bytes: int = 32 * 2**20
    files: int = 32
    pixels: int = 50_000_000
    queue: int = 256
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UserError(f"limits: {field.name} must be above 0, not {value}")
        if self.pixels > MAX_PIXELS:
            raise UserError(f"limits: pixels must be at most {MAX_PIXELS:,}, not {self.pixels:,}")
        if self.files > self.queue:
            raise UserError(
                f"limits: a queue of {self.queue} images never has room for a request of {self.files}"
            )
