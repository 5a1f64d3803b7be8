"""Middleware for every request: limits, the token, headers and metrics.

Plain ASGI: a request's body passes through in chunks as it arrives.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skipnets.serve.service import Service

__all__ = ["Guard"]

_LOG = logging.getLogger("skipnets")

# A client that is still sending when the response comes would see a broken connection, not the response.
_SECONDS_TO_DISCARD = 2.0


class Guard:
    """ASGI middleware that enforces limits and the token, and counts requests.

    Args:
        app: The routes.
        service: Its limits are enforced and its metrics updated.
        token: Bearer token that clients must send, except on `free` paths; None requires none.
        free: Paths that need no token.
        counted: Paths with metrics of their own.
        headers: Added to every response, unless a route has set them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        token: str | None,
        free: frozenset[str],
        counted: frozenset[str],
        headers: Mapping[str, str],
    ) -> None:
        self._app = app
        self._service = service
        self._token = None if token is None else f"bearer {token}".encode()
        self._free = free
        self._counted = counted
        self._headers = dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        body = _Body(scope, receive, self._service.limits.body_bytes)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if not timeout.expired():
                    await body.discard()
            await send(message)

        self._service.running += 1
        try:
            async with asyncio.timeout(self._service.limits.seconds) as timeout:
                if self._is_authorized(scope):
                    await self._app(scope, body.receive, answer)
                else:
                    refusal = _refusal(401, "a token is needed: Authorization: Bearer …")
                    refusal.headers["WWW-Authenticate"] = "Bearer"
                    await refusal(scope, receive, answer)
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                refusal = self._too_late(body)
            else:
                _LOG.exception("%s %s failed", scope["method"], scope["path"])
                refusal = _refusal(500, "internal error; see the server's log")
            if not status:
                await refusal(scope, receive, answer)
        finally:
            self._service.running -= 1
            path = scope["path"] if scope["path"] in self._counted else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()
            self._service.metrics.request_seconds.labels(path).observe(time.perf_counter() - start)

    def _too_late(self, body: _Body) -> JSONResponse:
        seconds = f"{self._service.limits.seconds:g} s"
        if body.complete:
            return _refusal(504, f"no answer within {seconds}")
        refusal = _refusal(408, f"the request did not arrive within {seconds}")
        refusal.headers["Connection"] = "close"
        return refusal

    def _is_authorized(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in self._free:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # In constant time: the duration must not reveal how much of a guess was right.
        return hmac.compare_digest(scheme.lower() + b" " + token, self._token)


class _Body:
    """A request's body, counted as it arrives.

    Args:
        scope: The request's ASGI scope.
        receive: The server's ASGI receive.
        limit: Most bytes.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self.complete = announced == "0" and "transfer-encoding" not in headers
        self._announced = int(announced) if announced.isdecimal() else 0
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._receive = receive
        self._limit = limit
        self._size = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: If there is more than the limit.
        """
        if self._announced > self._limit:
            raise self._too_large()
        # Reading the body sends the "100 Continue" that the client waits for.
        self._waits = False
        message = await self._next()
        if self._size > self._limit:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Read what no route has read, for a moment, so that the client gets to read the response."""
        if self.complete or self._waits:
            return
        most = self._size + self._limit
        try:
            async with asyncio.timeout(_SECONDS_TO_DISCARD):
                while not self.complete and self._size <= most:
                    await self._next()
        except TimeoutError:
            pass

    async def _next(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._limit:,} bytes, the limit")


def _refusal(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
