"""Limits on requests, connections, the queue and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from skipnets.errors import UserError

__all__ = ["BYTES_OF_VALUE", "Limits"]

BYTES_OF_VALUE = 20
"""Memory of a value of a signal or a volume while it is read, windowed and resized, as tests measure it."""

# What is served without being asked to: a volume of so many voxels along each axis, and of so many channels.
_SIDE, _CHANNELS = 256, 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that keep a server responsive whatever its clients send.

    Args:
        body_bytes: Largest body of a request. What has arrived of the bodies of all requests in progress may
            be four times as much; a request beyond that gets status 503 with `Retry-After`.
        files: Most images in a request.
        pixels: Most pixels in an image, checked by its header before anything is decoded.
        queue: Most images being read, waiting or computed. A request beyond that gets status 503 with
            `Retry-After`.
        seconds: Longest time for a request, its upload included.
        memory: Most bytes of images being decoded, of all requests together. An image whose header implies
            more is refused; others wait for their turn.
        connections: Most open connections. If there are more, the one that has been silent for longest is
            closed; if none is silent, the new one is refused.
        client_connections: Most open connections from one address, except this machine's own.
        head_seconds: Longest time until a request's head has arrived.

    Raises:
        UserError: If a value is impossible.
    """

    body_bytes: int = 32 * 2**20
    files: int = 32
    pixels: int = 25_000_000
    queue: int = 256
    seconds: float = 30.0
    memory: int = 256 * 2**20
    connections: int = 512
    client_connections: int = 64
    head_seconds: float = 10.0

    @classmethod
    def of_input(cls, dims: int, channels: int) -> Limits:
        """The usual limits for what a model takes: a volume of 256×256×256 voxels in float32 is within them.

        Args:
            dims: Spatial axes: 1 of signals, 2 of images, 3 of volumes.
            channels: Values at each place; more than four make no difference.
        """
        if dims != 3:
            return cls()
        values = _SIDE**3 * min(channels, _CHANNELS)
        return cls(
            body_bytes=max(4 * values + 2**20, cls.body_bytes),
            pixels=max(values, cls.pixels),
            memory=max(BYTES_OF_VALUE * values, cls.memory),
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise UserError(f"{field.name}={value}: must be a finite number above 0")
        if self.files > self.queue:
            raise UserError(
                f"queue={self.queue}: must be at least files={self.files}, the images of one request"
            )
