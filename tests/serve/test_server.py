"""The process: what it prints, its signals, its exit status, and what it never loads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.helpers.serving import announced, make_image, started, wait_until

from skipnets.cli import main
from skipnets.errors import UserError
from skipnets.serve import create_app, run_server
from skipnets.serve.server import _bind

# A server whose network takes its time.
SLOW = """
import logging, sys
from tests.helpers.serving import make_colors
from skipnets.serve import create_app, run_server
logging.getLogger("skipnets").addHandler(logging.StreamHandler())
logging.getLogger("skipnets").setLevel(logging.INFO)
colors = make_colors()
colors.runtime.seconds = 1.5
run_server(create_app(colors), port=0)
"""


def test_sigterm_lets_the_running_request_finish() -> None:
    with started(SLOW) as process:
        _, address = announced(process)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=20) as client:
            under_way = pool.submit(client.post, "/v1/predict", files={"files": make_image("blue")})
            wait_until(lambda: "skipnets_queue_images 1.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").json() == {"status": "draining"})
            assert client.post("/v1/predict", files={"files": make_image("red")}).status_code == 503
            answer = under_way.result()
        assert answer.json()["predictions"][0]["label"] == "blue"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")


def test_kept_connections_learn_that_they_end() -> None:
    with started(SLOW.replace("1.5", "0")) as process:
        _, address = announced(process)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=address, timeout=20)) for _ in range(8)]
            for client in clients:
                assert "connection" not in client.get("/healthz").headers
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
            for client in clients:
                response = client.post("/v1/predict", files={"files": make_image("red")})
                assert (response.status_code, response.headers["connection"]) == (503, "close")
        before = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - before < 3  # it waits for no one that has left


def test_a_second_signal_does_not_wait_for_what_is_queued() -> None:
    one_by_one = SLOW.replace("1.5", "0.5").replace("create_app(colors", "create_app(colors, batch_size=1")
    with started(one_by_one) as process:
        _, address = announced(process)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=20) as client:
            files = [("files", make_image("blue"))] * 16
            under_way = pool.submit(client.post, "/v1/predict", files=files)
            wait_until(lambda: "skipnets_queue_images 16.0" in client.get("/metrics").text)
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert process.wait(4) == 0
            assert under_way.exception() is not None or under_way.result().status_code != 200


def test_a_port_in_use_is_one_line_and_status_2(
    colors_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(colors_onnx), "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"skipnets: --port={port}: in use on 127.0.0.1; choose another, or 0 for a free one\n"
    )


def test_what_goes_wrong_in_loading_ends_the_server() -> None:
    def load() -> None:
        raise UserError("no such luck")

    with pytest.raises(UserError, match="no such luck"):
        run_server(create_app(load), port=0)  # type: ignore[arg-type]


def test_responses_do_not_wait_for_acknowledgements() -> None:
    with _bind("127.0.0.1", 0) as listening:

        async def no_delay() -> int:
            accepted = asyncio.get_running_loop().create_future()

            async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                made = writer.get_extra_info("socket")
                accepted.set_result(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(connected, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                found = await accepted
                writer.close()
                await writer.wait_closed()
                return int(found)

        assert asyncio.run(no_delay()) == 1


def test_the_package_costs_nothing_to_import() -> None:
    code = "import sys, skipnets.serve as s; assert sorted(s.__all__) == s.__all__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(loaded.split()) & {"fastapi", "uvicorn", "pydantic", "numpy", "PIL", "torch"}
