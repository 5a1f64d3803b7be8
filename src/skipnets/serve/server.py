"""The server process: socket, uvicorn and signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from skipnets.errors import UserError
from skipnets.serve.connections import ConnectionGate, handle_loop_error, limited_protocol
from skipnets.serve.limits import Limits
from skipnets.serve.service import Service

__all__ = ["run_server"]

_LOG = logging.getLogger("skipnets")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 1024
# Kept connections get this long to send another request and to learn from its response that it was the last.
_SECONDS_TO_LEAVE = 5.0


def run_server(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running requests; a second signal stops at once.

    Args:
        app: From `create_app`.
        host: A name or address of this machine; "0.0.0.0" for all of its addresses.
        port: 0 takes a free one.

    Raises:
        UserError: If there is no such address, the port is in use, or the classifier cannot be loaded.
    """
    # A malformed form gets a response; its parser's warning adds nothing.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # nor does a line for each malformed request
    service: Service = app.state.service
    listening = _bind(host, port)
    # The longest request, and time for its response.
    patience = math.ceil(service.limits.seconds) + 5
    gate = ConnectionGate(_within_open_files(service.limits), service.metrics)
    config = uvicorn.Config(
        app,
        access_log=False,
        # Python logs a failed accept() as often as this number says (until 3.13); `listen` sets the real one.
        backlog=16,
        http=limited_protocol(gate),
        log_config=None,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=patience,
        ws="none",
    )
    with listening:
        shown = f"[{host}]" if ":" in host else host
        _Server(config, service, gate, f"http://{shown}:{listening.getsockname()[1]}").run([listening])
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
    """Keeps answering while it drains, so that `/readyz` reports it, and then exits with status 0.

    Args:
        config: Uvicorn's configuration.
        service: The service that the application uses.
        gate: Its overdue connections are closed.
        address: The URL to announce.
    """

    def __init__(self, config: uvicorn.Config, service: Service, gate: ConnectionGate, address: str) -> None:
        super().__init__(config)
        self._service = service
        self._gate = gate
        self._drained_at: float | None = None
        self._address = address
        self._announced = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        asyncio.get_running_loop().set_exception_handler(handle_loop_error)
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(_BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which re-raises the signal at the end: the exit status would not be 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain; at the second signal, stop at once."""
        if self._service.state == "draining":
            self.should_exit = self.force_exit = True
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to stop."""
        if self._service.state == "ready" and not self._announced:
            self._announced = True
            classifier, unexplained = self._service.classifier, self._service.unexplained
            _LOG.info(
                "%s: serving %s (%d classes) in %s on %s%s",
                self._address,
                classifier.network,
                len(classifier.classes),
                classifier.runtime.name,
                classifier.runtime.device,
                "" if unexplained is None else f"; no Grad-CAM: {unexplained}",
            )
        if counter % 10 == 0:
            self._gate.close_overdue(asyncio.get_running_loop().time())
        if self._service.failure is not None or (self._service.drained and self._have_left()):
            self.should_exit = True
        return await super().on_tick(counter)

    def _have_left(self) -> bool:
        """Whether all clients have closed their connections, or had the time to."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        return not self._gate.connections or time.monotonic() - self._drained_at > _SECONDS_TO_LEAVE


def _within_open_files(limits: Limits) -> Limits:
    """Limits that this process's limit on open files allows; it is raised as far as it goes."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    # Images larger than a megabyte wait in temporary files; a runtime opens some more.
    others = limits.queue + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = others + limits.connections
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    fitting = max(soft - others, soft // 4, 1)
    _LOG.warning(
        "connections=%d: %d open files are the limit (ulimit -n), so %d connections are",
        limits.connections,
        soft,
        fitting,
    )
    return replace(limits, connections=fitting)


def _bind(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that an address in use is reported at once."""
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: must be from 0 to 65535")
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        made = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port={port}: in use on {host}; choose another, or 0 for a free one") from error
        if error.errno == errno.EACCES:
            raise UserError(
                f"port={port}: this user may not open it on {host}; choose one above 1023"
            ) from error
        raise UserError(f"host={host}: not an address of this machine ({error.strerror or error})") from error
    # asyncio disables Nagle's algorithm only for sockets that report protocol TCP, which `create_server` does
    # not set. With it every response would wait 40 ms for the client's acknowledgement.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
