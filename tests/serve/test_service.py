"""The queue, and a server's states."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.helpers.images import declaring
from tests.helpers.serving import (
    Serving,
    detail,
    make_colors,
    make_image,
    ready,
    served,
    started,
    upload,
    wait_until,
)

from skipnets.classifier import Classifier
from skipnets.data.pixel_budget import PixelBudget
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.serve import Limits, create_app, run_server
from skipnets.serve.service import BusyError


def test_a_full_queue_says_when_to_retry(serving: Serving, colors: Classifier) -> None:
    client = serving(limits=Limits(queue=3, files=3))
    runtime = colors.runtime
    runtime.held.clear()
    with ThreadPoolExecutor(2) as pool:
        two = pool.submit(client.post, "/v1/predict", files=upload(*[make_image("red")] * 2))
        one = pool.submit(client.post, "/v1/predict", files=upload(make_image("blue")))
        wait_until(lambda: "skipnets_queue_images 3.0" in client.get("/metrics").text)
        refused = client.post("/v1/predict", files=upload(make_image("red")))
        assert "3 images are waiting, of 3 at most" in detail(refused, 503)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # The event loop is free while the network is busy.
        before = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - before < 1
        runtime.held.set()
        assert two.result().status_code == one.result().status_code == 200
    assert client.post("/v1/predict", files=upload(*[make_image("red")] * 3)).status_code == 200
    assert "skipnets_queue_images 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/resnet20/infer"])
@pytest.mark.parametrize("announced", ["50000", "0" * 15 + "50000", None])
def test_bodies_are_held_up_to_four_times_the_largest(
    serving: Serving, path: str, announced: str | None
) -> None:
    client = serving(limits=Limits(body_bytes=50_000))
    length = "Transfer-Encoding: chunked" if announced is None else f"Content-Length: {announced}"
    kind = "Content-Type: multipart/form-data; boundary=b"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{length}\r\n\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + "x" * 49_000
    if announced is None:
        part = f"{len(part):x}\r\n{part}"
    image = upload(make_image("red") + bytes(5000))
    with contextlib.ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        unfinished = [stack.enter_context(socket.create_connection(address)) for _ in range(4)]
        for count, one in enumerate(unfinished, 1):
            one.sendall(head.encode())
            wait_until(lambda count=count: f"skipnets_queue_images {count}.0" in client.get("/metrics").text)
        # What is announced takes no room.
        assert client.post("/v1/predict", files=image).status_code == 200
        for one in unfinished:
            one.sendall(part.encode())
        wait_until(lambda: client.post("/v1/predict", files=image).status_code == 503)
        response = client.post("/v1/predict", files=image)
        assert "the bodies of other requests" in detail(response, 503)
        assert response.headers["retry-after"] == "1"
        assert "error" in client.post("/v2/models/resnet20/infer", content=bytes(5000)).json()
    wait_until(lambda: "skipnets_queue_images 0.0" in client.get("/metrics").text)
    assert client.post("/v1/predict", files=image).status_code == 200


def test_a_refused_body_leaves_its_room_to_others(colors: Classifier) -> None:
    service = create_app(colors, limits=Limits(body_bytes=100)).state.service
    with service.holding() as first, service.holding() as second, service.holding() as third:
        first(300)
        second(90)
        with pytest.raises(BusyError):
            second(11)
        third(100)
        with pytest.raises(BusyError):
            third(1)
    with service.holding() as fourth:
        fourth(400)


def test_it_is_alive_before_it_is_ready_and_ready_until_it_drains() -> None:
    go_on = threading.Event()

    def load() -> Classifier:
        assert go_on.wait(20)
        return make_colors()

    app = create_app(load)
    with served(app) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "loading"}
        assert client.get("/readyz").status_code == 503
        for refused in (client.get("/v1/model"), client.post("/v1/predict", files=upload(make_image("red")))):
            assert "load" in detail(refused, 503)
            assert refused.headers["retry-after"]
        go_on.set()
        wait_until(ready(app))
        assert client.get("/readyz").json() == {"status": "ready"}
        assert "skipnets_ready 1.0" in client.get("/metrics").text
        app.state.service.classifier.runtime.held.clear()
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(client.post, "/v1/predict", files=upload(make_image("red")))
            wait_until(lambda: "skipnets_queue_images 1.0" in client.get("/metrics").text)
            app.state.service.drain()
            time.sleep(0.3)
            assert client.get("/readyz").json() == {"status": "draining"}
            assert client.get("/readyz").status_code == 503
            assert "draining" in detail(client.post("/v1/predict", files=upload(make_image("red"))), 503)
            app.state.service.classifier.runtime.held.set()
            assert under_way.result().status_code == 200


def test_no_response_is_lost_or_swapped(serving: Serving, colors: Classifier) -> None:
    client = serving(batch_size=8)
    shades = [(value, 255 - value, 40) for value in range(0, 250, 5)]
    colors.runtime.seconds = 0.005

    def ask(shade: tuple[int, int, int]) -> float:
        response = client.post("/v1/predict", files=upload(make_image(shade)))
        ranking = response.json()["predictions"][0]["ranking"]
        return next(row["probability"] for row in ranking if row["label"] == "red")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, shades))
    images = [Image.new("RGB", (20, 18), shade) for shade in shades]
    expected = [dict(row.ranking)["red"] for row in colors.predict(images, top_k=3)]
    assert answers == pytest.approx(expected, abs=1e-12)
    batches = colors.runtime.batches[1:]  # the first was the warm-up's
    served_ones = batches[: batches.index(32)] if 32 in batches else batches
    assert max(served_ones) > 1
    assert max(served_ones) <= 8


def test_an_image_whose_outputs_are_not_finite_fails_alone(serving: Serving, colors: Classifier) -> None:
    logits = colors.runtime.logits

    def overflowing(batch: NDArray[Any]) -> NDArray[np.float32]:
        means = logits(batch)
        return np.where(means.min(axis=1, keepdims=True) > 15, np.nan, means)

    colors.runtime.logits = overflowing
    client = serving(batch_delay=1)
    white = make_image((255, 255, 255), (16, 16))
    images = {"name": "images", "shape": [1], "datatype": "BYTES"}
    requests: list[dict[str, Any]] = [
        {"url": "/v1/predict", "files": upload(make_image("red"))},
        {"url": "/v1/predict", "files": upload(make_image("blue"), white)},
        {"url": "/v1/predict", "files": upload(white)},
        *(
            {
                "url": "/v2/models/resnet20/infer",
                "json": {"inputs": [images | {"data": [base64.b64encode(image).decode()]}]},
            }
            for image in (make_image("green"), white)
        ),
    ]
    colors.runtime.held.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(client.post, "/v1/predict", files=upload(make_image("red")))
        wait_until(lambda: "skipnets_queue_images 1.0" in client.get("/metrics").text)
        waiting = [pool.submit(client.post, **request) for request in requests]
        wait_until(lambda: "skipnets_queue_images 7.0" in client.get("/metrics").text)
        colors.runtime.held.set()
        red, mixed, failed, green, blamed = (each.result() for each in waiting)
    assert first.result().status_code == 200
    assert max(colors.runtime.batches) >= 6  # all of them together
    said = "the network's outputs are not finite"
    assert red.json()["predictions"][0]["label"] == "red"
    answered, other = mixed.json()["predictions"]
    assert (mixed.status_code, answered["label"], other["label"]) == (200, "blue", None)
    assert other["error"].startswith(said)
    assert said in detail(failed, 422)
    assert green.json()["outputs"][1]["data"] == ["green"]
    assert (blamed.status_code, said in blamed.json()["error"]) == (400, True)
    counted = client.get("/metrics").text
    assert 'skipnets_images_total{outcome="failed"} 3.0' in counted
    assert 'skipnets_images_total{outcome="answered"} 4.0' in counted


def test_a_model_whose_outputs_are_never_finite_is_not_served(colors: Classifier) -> None:
    colors.runtime.logits = lambda batch: np.full((len(batch), 3), np.inf, np.float32)
    with pytest.raises(UserError, match="the network's outputs are not finite"):
        run_server(create_app(colors), port=0)


# A server, and the growth of its peak memory.
MEASURED = """
import sys, threading
from pathlib import Path
import httpx
from tests.helpers.images import animated_webp
from tests.helpers.serving import make_colors, make_image, ready, served, started, upload, wait_until
from skipnets.serve import Limits, create_app

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

app = create_app(make_colors(), limits=Limits(pixels=50_000_000, memory=128 * 2**20), workers=8)
with served(app) as client:
    wait_until(ready(app))
    one = client.post("/v1/predict", files=upload(animated_webp(10, 10))).json()["predictions"][0]
    assert one["error"] is None, one
    for side, count in ((7000, 32), (2000, 12)):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        response = client.post("/v1/predict", files=upload(*[animated_webp(side, side)] * count))
        errors = {row["error"] for row in response.json()["predictions"]}
        print(side, peak() - before, *errors, sep="|")
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's peak memory")
def test_images_that_declare_more_than_they_hold_take_no_memory() -> None:
    with started(MEASURED) as process:
        refused, fitting = (line.split("|") for line in process.communicate(timeout=60)[0].splitlines())
    limit = "decoding it can take 935 MiB, and 128 MiB is the limit"
    assert refused[2] == f"{limit}; skipnets serve --max-image-memory allows more"
    assert float(refused[1]) < 32
    assert fitting[2] == "None"
    assert float(fitting[1]) < 128 + 48  # 12 of them, all at once, would take 900


def test_an_image_that_only_becomes_large_is_counted_as_large(colors: Classifier) -> None:
    colors.preprocessing = Preprocessing(size=16, fit="crop")
    app = create_app(colors, limits=Limits(memory=2**20))
    with served(app) as client:
        wait_until(ready(app))
        files = upload(make_image("red"), make_image("red", (1, 500)), make_image("red", (500, 1)))
        fits, *refused = client.post("/v1/predict", files=files).json()["predictions"]
    assert fits["label"] == "red"
    for answer in refused:
        assert "and 1 MiB is the limit" in answer["error"]


def test_images_that_hide_their_size_count_as_large_as_they_are(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved = []
    original = PixelBudget.reserved

    def note(self: PixelBudget, size: int, **options: Any) -> Any:
        reserved.append(size)
        return original(self, size, **options)

    monkeypatch.setattr(PixelBudget, "reserved", note)
    client = serving(limits=Limits(memory=10**6, pixels=10**6))
    images = []
    for side in (16, 500, 1001):
        file = io.BytesIO()
        Image.new("RGB", (side, side), "blue").save(file, "AVIF", speed=10)
        images.append(declaring(file.getvalue(), 16, 16))
    response = client.post("/v1/predict", files=upload(*images, make_image("blue")))
    fits, large, larger, other = response.json()["predictions"]
    assert fits["label"] == other["label"] == "blue"
    assert "decoding it can take 4 MiB, and 1 MiB is the limit" in large["error"]
    assert "larger than 1,000,000 pixels" in larger["error"]
    assert len(reserved) == 2


def test_what_nobody_waits_for_is_not_decoded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, go_on = [], threading.Event()
    pixels = Preprocessing.pixels

    def slow_pixels(self: Preprocessing, image: Image.Image) -> NDArray[np.uint8]:
        decoded.append(image.size)
        go_on.wait(5)
        return pixels(self, image)

    client = serving(limits=Limits(seconds=2), workers=2)
    monkeypatch.setattr(Preprocessing, "pixels", slow_pixels)
    response = client.post("/v1/predict", files=upload(*[make_image("red")] * 16))
    assert "no answer within 2 s" in detail(response, 504)
    go_on.set()
    monkeypatch.undo()
    assert client.post("/v1/predict", files=upload(make_image("red"))).status_code == 200
    assert len(decoded) == 2  # those that had begun
