"""The server process: socket, uvicorn and signals."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from skipnets.errors import UserError
from skipnets.serve.service import Service

__all__ = ["run_server"]

_LOG = logging.getLogger("skipnets")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    service: Service = app.state.service
    listening = _bind(host, port)
    # The longest request, and time for its response.
    patience = math.ceil(service.limits.seconds) + 5
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=patience,
        ws="none",
    )
    with listening:
        shown = f"[{host}]" if ":" in host else host
        _Server(config, service, f"http://{shown}:{listening.getsockname()[1]}").run([listening])
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
    """Keeps answering while it drains, so that `/readyz` reports it, and then exits with status 0.

    Args:
        config: Uvicorn's configuration.
        service: The service that the application uses.
        address: The URL to announce.
    """

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service = service
        self._address = address
        self._announced = False

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
            classifier = self._service.classifier
            _LOG.info(
                "%s: serving %s (%d classes) in %s on %s",
                self._address,
                classifier.architecture["name"],
                len(classifier.classes),
                classifier.runtime.name,
                classifier.runtime.device,
            )
        if self._service.drained or self._service.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)


def _bind(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that an address in use is reported at once."""
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: must be from 0 to 65535")
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        made = socket.create_server(address[:2], family=family, backlog=1024)
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
