"""The process: what it prints, its signals, its exit status, and what it never loads."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serve.conftest import make_image, wait_until

from skipnets.classifier import Classifier
from skipnets.cli import main
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.serve import create_app, run_server
from skipnets.serve.server import _bind

# `skipnets serve`; at the end it tells which of the heavy libraries were loaded.
COMMAND = """
import sys
from skipnets.cli import main
status = main(sys.argv[1:])
print("heavy:", *sorted({"torch", "torchvision", "matplotlib", "scipy"} & set(sys.modules)))
sys.exit(status)
"""

# A server whose network takes its time.
SLOW = """
import logging, sys
from tests.serve.conftest import make_colors
from skipnets.serve import create_app, run_server
logging.getLogger("skipnets").addHandler(logging.StreamHandler())
logging.getLogger("skipnets").setLevel(logging.INFO)
colors = make_colors()
colors.runtime.seconds = 1.5
run_server(create_app(colors), port=0)
"""


@contextlib.contextmanager
def started(code: str, *words: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process, which is killed if the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | variables,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The line that says that it serves, and the address in it."""
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return line, found[0]


def test_an_onnx_file_is_served_without_torch(colors_onnx: Path) -> None:
    with started(COMMAND, "serve", colors_onnx, "--port", 0, "--threads", 1) as process:
        line, address = announced(process)
        assert line == f"{address}: serving resnet20 (3 classes) in onnxruntime on cpu\n"
        answer = httpx.post(f"{address}/v1/predict", files={"files": make_image("green")}).json()
        assert answer["predictions"][0]["label"] == "green"
        assert httpx.get(address).status_code == 200
        explanation = httpx.post(f"{address}/v1/explain", files={"file": make_image("green")})
        assert explanation.status_code == 501
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "heavy:\n", "")


def test_a_model_file_is_served_by_the_engine_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    network = create_model("resnet20", num_classes=3, width=4).eval()
    made = Classifier.from_model(network, classes=("a", "b", "c"), preprocessing=Preprocessing(size=32))
    made.save(tmp_path / "model.safetensors")
    [expected] = made.predict([Image.open(io.BytesIO(make_image("green")))])
    with started(COMMAND, "serve", tmp_path, "--port", 0, "--runtime", "native") as process:
        line, address = announced(process)
        assert line.endswith("in native on cpu\n")
        [answer] = httpx.post(f"{address}/v1/predict", files={"files": make_image("green")}).json()[
            "predictions"
        ]
        assert answer["label"] == expected.label
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
        process.terminate()
        assert process.communicate(timeout=20)[0] == "heavy:\n"


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
        f"skipnets: port={port}: in use on 127.0.0.1; choose another, or 0 for a free one\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "port=70000: must be from 0 to 65535"),
        (["--host", "256.0.0.1"], "host=256.0.0.1: not an address of this machine"),
        (["--host", "203.0.113.7"], "host=203.0.113.7: not an address of this machine"),
        (["--batch-size", "0"], "batch_size=0: must be at least 1"),
        (["--workers", "0"], "workers=0: must be at least 1"),
        (["--max-files", "0"], "files=0: must be above 0"),
        (["--max-megapixels", "100"], "pixels=100,000,000: must be at most 89,478,485"),
        (["--examples", "nowhere"], "nowhere"),
        (["--token", ""], "token: must be printable ASCII"),
        (["--port", "0", "--threads", "0"], "threads must be at least 1, not 0"),
        (["--port", "0", "--runtime", "torch"], 'runs in "onnxruntime" only, not in "torch"'),
    ],
)
def test_wrong_options_are_one_line_and_status_2(
    words: list[str], said: str, colors_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(colors_onnx), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_model_that_is_not_there_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "none.onnx"), "--port", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "none.onnx does not exist" in line


def test_what_goes_wrong_in_loading_ends_the_server() -> None:
    def load() -> None:
        raise UserError("no such luck")

    with pytest.raises(UserError, match="no such luck"):
        run_server(create_app(load), port=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_a_missing_extra_says_what_to_install(
    library: str, colors_onnx: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(sys.modules):
        if module.startswith("skipnets.serve."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["serve", str(colors_onnx)]) == 2
    assert capsys.readouterr().err == (
        'skipnets: this needs the extra "serve": pip install "skipnets[serve]"\n'
    )


def test_answers_do_not_wait_for_acknowledgements() -> None:
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


def test_the_token_may_come_from_the_environment(colors_onnx: Path) -> None:
    with started(COMMAND, "serve", colors_onnx, "--port", 0, SKIPNETS_TOKEN="Sesame") as process:
        _, address = announced(process)
        assert httpx.get(f"{address}/v1/model").status_code == 401
        assert httpx.get(f"{address}/v1/model", headers={"authorization": "Bearer Sesame"}).status_code == 200
