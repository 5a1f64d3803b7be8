"""What holds for every request: limits in bytes and seconds, the token, headers."""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.helpers.serving import Serving, detail, make_image, upload, wait_until

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.serve import Limits, create_app


def test_a_request_is_limited_in_bytes_announced_or_not(serving: Serving) -> None:
    client = serving(limits=Limits(body_bytes=50_000))
    body = b"x" * 60_000
    assert "50,000 bytes" in detail(client.post("/v1/predict", files=upload(body)), 413)
    form = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    pieces = iter([head, *[b"x" * 10_000] * 6])
    assert "50,000 bytes" in detail(client.post("/v1/predict", content=pieces, headers=form), 413)
    # The connection is still good, and others are still answered.
    assert client.post("/v1/predict", files=upload(make_image("red"))).status_code == 200


def test_too_large_a_request_is_told_so_whatever_else_is_going_on(
    serving: Serving, colors: Classifier
) -> None:
    client = serving(limits=Limits(body_bytes=50_000, queue=1, files=1))
    colors.runtime.held.clear()
    with ThreadPoolExecutor(9) as pool:
        busy = pool.submit(client.post, "/v1/predict", files=upload(make_image("red")))
        wait_until(lambda: "skipnets_queue_images 1.0" in client.get("/metrics").text)

        def send_too_much(_: int) -> httpx.Response:
            # A client that reads the response only when it has sent everything, as many do.
            with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as one:
                one.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n")
                for _ in range(9):
                    time.sleep(0.02)
                    one.sendall(b"x" * 10_000)
                return one.recv(13)

        assert set(pool.map(send_too_much, range(8))) == {b"HTTP/1.1 413 "}
        colors.runtime.held.set()
        assert busy.result().status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("cats.example.org", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_another_name_for_a_loopback_address_is_refused(serving: Serving, host: str, status: int) -> None:
    client = serving(allow_hosts=["cats.example.org"])
    response = client.get("/v1/model", headers={"host": host})
    assert response.status_code == status
    if status == 421:
        assert "not a name of this server" in detail(response, 421)


@pytest.mark.parametrize(
    ("server", "host", "status"),
    [
        ("127.0.0.2", "evil.example", 421),
        ("127.0.0.2", "127.0.0.2:80", 200),
        ("[::ffff:127.0.0.1]", "evil.example", 421),
        ("10.0.0.1", "cats.example.org", 200),
    ],
)
def test_names_count_on_every_loopback_address(
    colors: Classifier, server: str, host: str, status: int
) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(colors))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{server}") as client:
            return await client.get("/healthz", headers={"host": host})

    assert asyncio.run(ask()).status_code == status


def test_any_name_where_any_is_allowed(serving: Serving) -> None:
    client = serving(allow_hosts=["*"])
    assert client.get("/v1/model", headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "https://cats.example.org"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "https://proxied.example"}, 200),
    ],
)
def test_pages_of_other_sites_cannot_use_the_server(
    serving: Serving, headers: dict[str, str], status: int
) -> None:
    client = serving(allow_hosts=["cats.example.org"])
    headers = {"host": "localhost:8000", **headers}
    response = client.post("/v1/predict", files=upload(make_image("red")), headers=headers)
    assert response.status_code == status
    assert client.get("/v1/model", headers=headers).status_code == 200  # browsers keep its answer from others


def test_a_request_takes_no_longer_than_it_may(serving: Serving, colors: Classifier) -> None:
    client = serving(limits=Limits(seconds=1.0))
    colors.runtime.held.clear()
    assert "no answer within 1 s" in detail(client.post("/v1/predict", files=upload(make_image("red"))), 504)
    colors.runtime.held.set()
    assert client.post("/v1/predict", files=upload(make_image("red"))).status_code == 200
    assert "skipnets_queue_images 0.0" in client.get("/metrics").text


def test_an_upload_takes_no_longer_than_it_may(serving: Serving) -> None:
    client = serving(limits=Limits(seconds=1.0))
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as slow:
        slow.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 1 s" in answer


def test_a_client_that_goes_away_leaves_no_trace(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    client = serving()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
    wait_until(lambda: 'path="/v1/predict",status="400"' in client.get("/metrics").text)
    assert "skipnets_queue_images 0.0" in client.get("/metrics").text
    assert "Traceback" not in caplog.text


def test_the_token_is_asked_for_and_compared_in_constant_time(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append((a, b)), compare(a, b))[1])
    client = serving(token="open Sesame")
    for path in ("/", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    for path in ("/v1/model", "/metrics", "/openapi.json", "/v1/examples/0", "/nowhere"):
        response = client.get(path)
        assert "token" in detail(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer open sesame", "open Sesame", "Bearer open Sesame2", "Basic open Sesame", "Bearer"):
        headers = {"authorization": wrong}
        response = client.post("/v1/predict", files=upload(make_image("red")), headers=headers)
        assert response.status_code == 401
        assert compared[-1][1] == b"bearer open Sesame"
    for right in ("Bearer open Sesame", "bearer open Sesame"):
        headers = {"authorization": right}
        response = client.post("/v1/predict", files=upload(make_image("red")), headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("token", ["", " a", "a\n", "ä"])
def test_a_token_that_no_client_could_send_is_refused(token: str, colors: Classifier) -> None:
    with pytest.raises(UserError, match="token"):
        create_app(colors, token=token)


def test_a_response_contains_no_traceback(
    serving: Serving, colors: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    client = serving()
    for failure in (RuntimeError("secret in /home/somebody"), TimeoutError("of somebody else")):
        colors.runtime.failure = failure
        response = client.post("/v1/predict", files=upload(make_image("red")))
        assert detail(response, 500) == "internal error; see the server's log"
        assert str(failure) in caplog.text
    colors.runtime.failure = None
    assert client.post("/v1/predict", files=upload(make_image("red"))).status_code == 200


def test_every_response_has_security_headers(serving: Serving) -> None:
    client = serving()
    for path in ("/", "/v1/model", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    # Nothing is fetched from elsewhere, and what is inline is allowed by its hash alone.
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text)
    assert not re.search(r'\s(style|on\w+)="', page.text)
