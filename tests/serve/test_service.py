"""The queue, and a server's states."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from tests.helpers.serving import Serving, detail, make_colors, make_image, ready, served, upload, wait_until

from skipnets.classifier import Classifier
from skipnets.serve import Limits, create_app


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
