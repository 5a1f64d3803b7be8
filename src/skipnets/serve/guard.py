"""Middleware for every request: where it comes from, limits, the token, headers and metrics.

Plain ASGI: a request's body passes through in chunks as it arrives.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skipnets.serve.addresses import is_loopback
from skipnets.serve.service import Service

__all__ = ["Guard", "refusal_body"]

_LOG = logging.getLogger("skipnets")

# A client that reads its response only after it has sent everything would see a broken connection instead.
_SECONDS_TO_DISCARD = 10.0
_MORE = "; skipnets serve --max-megabytes allows more"


class Guard:
    """ASGI middleware that enforces limits, the token and where requests come from, and counts them.

    Args:
        app: The routes.
        service: Its limits are enforced and its metrics updated.
        token: Bearer token that clients must send, except on `free` paths; None requires none.
        free: Paths that need no token.
        counted: From a path to the one under which it is counted.
        headers: Added to every response, unless a route has set them.
        hosts: Names of this server, lower case, beside those of this machine; "*" for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        token: str | None,
        free: frozenset[str],
        counted: Callable[[str], str],
        headers: Mapping[str, str],
        hosts: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._service = service
        self._token = None if token is None else f"bearer {token}".encode()
        self._free = free
        self._counted = counted
        self._headers = dict(headers)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._service.holding() as hold:
            await self._handle(scope, _Body(scope, receive, self._service.limits.body_bytes, hold), send)

    async def _handle(self, scope: Scope, body: _Body, send: Send) -> None:
        start = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if self._service.state == "draining":
                    headers["Connection"] = "close"
            elif not message.get("more_body", False) and not timeout.expired():
                # The response can be read now, and ends when the request has.
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        self._service.running += 1
        try:
            async with asyncio.timeout(self._service.limits.seconds) as timeout:
                refusal = self._refusal(scope, body)
                if refusal is None:
                    await self._app(scope, body.receive, answer)
                else:
                    await refusal(scope, body.receive, answer)
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                refusal = self._too_late(scope, body)
            else:
                _LOG.exception("%s %s failed", scope["method"], scope["path"])
                refusal = _refusal(scope, 500, "internal error; see the server's log")
            if not status:
                await refusal(scope, body.receive, answer)
        finally:
            self._service.running -= 1
            path = self._counted(scope["path"])
            self._service.metrics.requests.labels(path, str(status)).inc()
            self._service.metrics.request_seconds.labels(path).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope, body: _Body) -> JSONResponse | None:
        """Why a request is refused before anything of it is read; None if it is not."""
        headers = Headers(scope=scope)
        if not self._is_addressed(scope, headers):
            return _refusal(
                scope, 421, f"Host {headers['host']!r} is not a name of this server (--allow-host adds names)"
            )
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not self._is_same_site(headers):
            return _refusal(scope, 403, "requests from pages of other sites are refused")
        if not self._is_authorized(scope):
            refusal = _refusal(scope, 401, "a token is needed: Authorization: Bearer …")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        if body.is_announced_too_large:
            return _refusal(scope, 413, body.too_large)
        return None

    def _is_addressed(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request names this server.

        A page of another site can point its own name at a loopback address and then read what this server
        answers (DNS rebinding): its requests still carry that name. So names count where a connection came
        in on a loopback address, or where names are given.
        """
        host = headers.get("host")
        if host is None or "*" in self._hosts:
            return True
        if not self._hosts and not is_loopback((scope.get("server") or ("",))[0]):
            return True
        name = _host_name(host)
        return is_loopback(name) or name in self._hosts

    def _is_same_site(self, headers: Headers) -> bool:
        """Whether no page of another site sent this: browsers say where a request comes from."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get("origin")
        if origin is None:
            return True  # not a browser
        address = origin.partition("://")[2]
        return address == headers.get("host") or _host_name(address) in self._hosts

    def _too_late(self, scope: Scope, body: _Body) -> JSONResponse:
        seconds = f"{self._service.limits.seconds:g} s"
        if body.complete:
            return _refusal(scope, 504, f"no answer within {seconds}")
        refusal = _refusal(scope, 408, f"the request did not arrive within {seconds}")
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
        hold: Called with the number of bytes of each piece that a route receives.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, hold: Callable[[int], None]) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self.complete = announced == "0" and "transfer-encoding" not in headers
        self.is_announced_too_large = announced.isdecimal() and int(announced[:20]) > limit
        self.too_large = f"the request is larger than {limit:,} bytes, the limit{_MORE}"
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._receive = receive
        self._limit = limit
        self._hold = hold
        self._size = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: If there is more than the limit.
            BusyError: If the bodies of other requests take all the room.
        """
        # Reading the body sends the "100 Continue" that the client waits for.
        self._waits = False
        message = await self._next()
        if self._size > self._limit:
            raise HTTPException(413, self.too_large)
        self._hold(len(message.get("body", b"")))
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


def _host_name(host: str) -> str:
    """The name in a Host header, lower case, without its port: "[::1]:8000" → "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def refusal_body(path: str, detail: str) -> dict[str, str]:
    """The JSON of a refusal; the Open Inference Protocol calls its line `error`."""
    return {"error" if path.startswith("/v2") else "detail": detail}


def _refusal(scope: Scope, status: int, detail: str) -> JSONResponse:
    return JSONResponse(refusal_body(scope["path"], detail), status)
