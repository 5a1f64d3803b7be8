"""Limits on one request, and on the queue."""

from __future__ import annotations

from dataclasses import dataclass, fields

from skipnets.errors import UserError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that keep a server responsive whatever its clients send.

    Args:
        body_bytes: Largest body of a request.
        files: Most images in a request.
        pixels: Most pixels in an image, checked by its header before anything is decoded.
        queue: Most images being read, waiting or computed. A request beyond that gets status 503 with
            `Retry-After`.
        seconds: Longest time for a request, its upload included.

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
                raise UserError(f"{field.name}={value}: must be above 0")
        if self.files > self.queue:
            raise UserError(
                f"queue={self.queue}: must be at least files={self.files}, the images of one request"
            )
