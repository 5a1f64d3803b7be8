"""Connections: how many, how slow, half-closed ones, and what a flood of them does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.helpers.serving import Serving, announced, make_image, started, upload, wait_until

from skipnets.classifier import Classifier
from skipnets.serve import Limits
from skipnets.serve.connections import ConnectionGate, client_of, handle_loop_error
from skipnets.serve.metrics import Metrics


@contextlib.contextmanager
def connections(client: httpx.Client, count: int) -> Iterator[list[socket.socket]]:
    """Connections on which nothing is sent."""
    address = (client.base_url.host, client.base_url.port)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(count)]


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_silent_connections_make_room_for_others(serving: Serving) -> None:
    client = serving(limits=Limits(connections=20))
    with connections(client, 100) as silent:
        before = time.monotonic()
        with httpx.Client(base_url=client.base_url, timeout=20) as other:
            assert other.post("/v1/predict", files=upload(make_image("red"))).status_code == 200
            metrics = other.get("/metrics").text
        assert time.monotonic() - before < 2
        assert "skipnets_connections 20.0" in metrics
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""


def test_busy_connections_are_not_closed_for_others(serving: Serving, colors: Classifier) -> None:
    client = serving(limits=Limits(connections=2))
    wait_until(lambda: "skipnets_connections 1.0" in client.get("/metrics").text)
    colors.runtime.held.clear()
    body = httpx.Request("POST", client.base_url, files=upload(make_image("red")))
    head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
    request = f"POST /v1/predict HTTP/1.1\r\n{head}\r\n".encode() + body.read()
    with connections(client, 2) as busy:
        for connection in busy:  # the client's own is silent and makes room
            connection.sendall(request)
        wait_until(lambda: colors_waiting(client) == 2)
        with connections(client, 1) as [third]:
            refused = read_all(third)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["detail"] == "2 connections are open, the limit"
        colors.runtime.held.set()
        assert all(connection.recv(12) == b"HTTP/1.1 200" for connection in busy)


def colors_waiting(client: httpx.Client) -> int:
    """How many requests are in progress, as the service itself tells (a request would need a connection)."""
    return client.app.state.service.running  # type: ignore[attr-defined]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_request_has_to_begin_in_time(serving: Serving, sent: bytes) -> None:
    client = serving(limits=Limits(head_seconds=0.3))
    with connections(client, 1) as [slow]:
        slow.sendall(sent)
        before = time.monotonic()
        answer = read_all(slow)
        assert 0.2 < time.monotonic() - before < 3
    assert answer[:13] == (b"HTTP/1.1 408 " if sent else b"")


def test_a_head_is_limited_in_bytes(serving: Serving) -> None:
    client = serving()
    with connections(client, 1) as [endless]:
        endless.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                endless.sendall(b"X-Header: " + b"x" * 4000 + b"\r\n")
            assert read_all(endless)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")
            return
    # A broken connection: the server was the first to close, which is as good.


def test_a_client_that_has_closed_its_half_is_answered(serving: Serving) -> None:
    client = serving()
    body = httpx.Request("POST", client.base_url, files=upload(make_image("green")))
    head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
    with connections(client, 1) as [half]:
        half.sendall(f"POST /v1/predict HTTP/1.1\r\n{head}\r\n".encode() + body.read())
        half.shutdown(socket.SHUT_WR)
        answer = read_all(half)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"][0]["label"] == "green"


def test_a_client_that_does_not_read_is_given_up(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipnets.serve.connections._SECONDS_TO_READ", 0.2)
    client = serving(limits=Limits(seconds=0.5))
    large = client.get("/").content
    asked = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * (8_000_000 // len(large))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((client.base_url.host, client.base_url.port))
        deaf.sendall(asked)
        wait_until(lambda: 'refused_total{reason="response"} 1.0' in client.get("/metrics").text, 10)


def test_each_of_many_requests_sent_at_once_has_its_own_time(
    serving: Serving, colors: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipnets.serve.connections._SECONDS_TO_READ", 0.2)
    client = serving(limits=Limits(seconds=1))
    colors.runtime.seconds = 0.4
    sent = httpx.Request("POST", client.base_url, files=upload(make_image("red")))
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    request = f"POST /v1/predict HTTP/1.1\r\n{head}\r\n".encode() + sent.read()
    with connections(client, 1) as [connection]:
        connection.sendall(request * 7 + request.replace(b"/v1/predict", b"/v1/predict?top_k=0"))
        answers = b""
        while b"HTTP/1.1 422 " not in answers:
            received = connection.recv(4096)
            assert received, "the connection was closed"
            answers += received
    assert answers.count(b"HTTP/1.1 200 ") == 7


def test_one_address_has_its_share_and_this_machine_has_none() -> None:
    gate = ConnectionGate(Limits(client_connections=2, connections=3), Metrics())
    loop = type("Idle", (), {"is_idle": False, "idle_since": 0.0})
    made = []
    for host in ("198.51.100.7", "198.51.100.7", "127.0.0.1"):
        connection = loop()
        connection.client_key = client_of((host, 1))
        assert gate.refusal(connection.client_key) is None
        gate.add(connection)
        made.append(connection)
    assert gate.refusal("198.51.100.7") == "2 connections from this address are open, the limit"
    assert gate.refusal(None) == "3 connections are open, the limit"
    gate.remove(made[0])
    gate.remove(made[0])
    assert gate.refusal("198.51.100.7") is None


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        ("a-socket", None),
    ],
)
def test_clients_are_told_apart_by_address(host: str, client: str | None) -> None:
    assert client_of((host, 1234)) == client
    assert client_of(None) is None


def test_errors_of_accept_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            lack = OSError(24, "Too many open files")
            handle_loop_error(loop, {"message": "socket.accept() out of system resource", "exception": lack})

    handle_loop_error.__dict__.pop("last", None)
    asyncio.run(fail())
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text


# A server that may open 64 files.
SCARCE = """
import logging, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from tests.helpers.serving import make_colors
from skipnets.serve import Limits, create_app, run_server
logging.getLogger("skipnets").addHandler(logging.StreamHandler())
logging.getLogger("skipnets").setLevel(logging.INFO)
run_server(create_app(make_colors(), limits=Limits(head_seconds=3)), port=0)
"""


def test_a_flood_of_connections_stops_nobody_and_fills_no_log() -> None:
    with started(SCARCE) as process:
        assert process.stderr is not None
        assert "64 open files are the limit" in process.stderr.readline()
        _, address = announced(process)
        url = httpx.URL(address)
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection((url.host, url.port), timeout=20))
            for _ in range(3):
                response = httpx.post(f"{address}/v1/predict", files=upload(make_image("red")), timeout=20)
                assert response.status_code == 200
        process.terminate()
        assert process.wait(20) == 0
        assert len(process.stderr.read().splitlines()) < 5
