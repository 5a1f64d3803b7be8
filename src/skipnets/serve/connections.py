"""Limits on connections: how many there are, and how long each may take.

Uvicorn limits neither silent connections nor the time that a request's head takes, so its protocol (h11's or
httptools', whichever is installed) is extended here.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import json
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from skipnets.serve.addresses import is_loopback
from skipnets.serve.limits import Limits
from skipnets.serve.metrics import Metrics

__all__ = ["ConnectionGate", "client_of", "handle_loop_error", "limited_protocol"]

_LOG = logging.getLogger("skipnets")
_HEAD_BYTES = 2**16
# Beyond a request's own time limit: for its response to be read.
_SECONDS_TO_READ = 15.0
_SECONDS_BETWEEN_LOGS = 10.0


class ConnectionGate:
    """Decides which connections are kept open.

    Args:
        limits: Their number and seconds are enforced.
        metrics: Count what is refused.

    Attributes:
        connections: The open connections, instances of a `limited_protocol`.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.connections: set[Any] = set()
        self._metrics = metrics
        self._clients: Counter[str] = Counter()

    def refusal(self, client: str | None) -> str | None:
        """Why a further connection is refused; None if it is welcome.

        If there are too many, the one that has been silent for longest makes room.

        Args:
            client: From `client_of`.
        """
        if client is not None and self._clients[client] >= self.limits.client_connections:
            return f"{self.limits.client_connections} connections from this address are open, the limit"
        if len(self.connections) < self.limits.connections:
            return None
        silent = min(
            (connection for connection in self.connections if connection.is_idle),
            key=lambda connection: connection.idle_since,
            default=None,
        )
        if silent is None:
            return f"{self.limits.connections} connections are open, the limit"
        self.count("silent")
        silent.transport.abort()
        self.remove(silent)
        return None

    def add(self, connection: Any) -> None:
        """Count an open connection."""
        self.connections.add(connection)
        self._clients.update([connection.client_key] if connection.client_key else [])
        self._metrics.connections.set(len(self.connections))

    def remove(self, connection: Any) -> None:
        """Forget a connection, if it was counted."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if connection.client_key:
            self._clients[connection.client_key] -= 1
            self._clients += Counter()  # drops clients without connections
        self._metrics.connections.set(len(self.connections))

    def count(self, reason: str) -> None:
        """Count a connection that was refused or closed."""
        self._metrics.connections_refused.labels(reason).inc()

    def close_overdue(self, now: float) -> None:
        """Close connections that have taken too long; called every second.

        Args:
            now: On the event loop's clock.
        """
        for connection in list(self.connections):
            if connection.is_idle:
                if now - connection.idle_since > self.limits.head_seconds:
                    self.count("head")
                    connection.close_idle(f"no request arrived within {self.limits.head_seconds:g} s")
            elif now - connection.busy_since > self.limits.seconds + _SECONDS_TO_READ:
                self.count("response")
                connection.transport.abort()


def limited_protocol(gate: ConnectionGate) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol, limited by a gate."""
    base: Any = AutoHTTPProtocol

    class LimitedProtocol(base):  # type: ignore[misc]
        """A connection that is counted, has deadlines, and answers clients that have closed their half."""

        client_key: str | None = None
        idle_since = 0.0
        busy_since = 0.0
        _head_bytes = 0

        @property
        def is_idle(self) -> bool:
            """Whether no request is being answered: none has arrived whole, head included."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.client_key = client_of(self.client)
            self.idle_since = self.loop.time()
            refusal = gate.refusal(self.client_key)
            if refusal is None:
                gate.add(self)
                return
            gate.count("limit")
            self._refuse(503, refusal)

        def connection_lost(self, exc: Exception | None) -> None:
            gate.remove(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            was_idle = self.is_idle
            super().data_received(data)
            if not self.is_idle:
                self._head_bytes = 0
                if was_idle:
                    self.busy_since = self.loop.time()
                return
            self._head_bytes += len(data)
            if was_idle and self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
                gate.count("head")
                self._refuse(431, f"the request's head is larger than {_HEAD_BYTES:,} bytes, the limit")

        def on_response_complete(self) -> None:
            self.idle_since = self.loop.time()
            self._head_bytes = 0
            super().on_response_complete()
            if not self.is_idle:  # a request that was sent before this response begins now
                self.busy_since = self.loop.time()

        def eof_received(self) -> bool:
            # The client sends no more, but it may still wait for the response to a request that is whole.
            if self.is_idle or self.cycle.more_body:
                return False
            self.cycle.keep_alive = False
            return True

        def close_idle(self, reason: str) -> None:
            """Close a connection on which no request has arrived in time."""
            if self.transport.is_closing():
                self.transport.abort()  # its client does not read
            elif self._head_bytes:
                self._refuse(408, reason)
            else:
                self.transport.close()

        def _refuse(self, status: int, detail: str) -> None:
            body = json.dumps({"detail": detail}).encode()
            head = (
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\nRetry-After: 1\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol


def client_of(address: Iterable[Any] | None) -> str | None:
    """What connections of one client are counted under: its address, or its IPv6 network of 64 bits.

    Args:
        address: Host and port; None for no Internet address.

    Returns:
        None for this machine itself, where a reverse proxy stands for many clients.
    """
    host = str(next(iter(address or ()), None))
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if is_loopback(host):
        return None
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def handle_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log errors of the event loop; a lack of file descriptors, which repeats at once, every 10 s at most."""
    if "socket.accept()" not in context.get("message", ""):
        loop.default_exception_handler(context)
        return
    last = getattr(handle_loop_error, "last", -_SECONDS_BETWEEN_LOGS)
    if loop.time() - last >= _SECONDS_BETWEEN_LOGS:
        handle_loop_error.last = loop.time()  # type: ignore[attr-defined]
        _LOG.error(
            "no connections can be accepted for now: %s (raise the limit on open files, ulimit -n)",
            context.get("exception"),
        )
