"""What clients are answered, over real sockets."""

from __future__ import annotations

import hmac
import io
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image
from tests.serve.conftest import CLASSES, make_colors, make_image, ready, served, wait_until

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.serve import Example, Limits, create_app

Serving = Callable[..., httpx.Client]


def upload(*contents: bytes, field: str = "files") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{index}.png", content)) for index, content in enumerate(contents)]


def detail(response: httpx.Response, status: int) -> str:
    """The one line of a refusal."""
    assert response.status_code == status, response.text
    text = response.json()["detail"]
    assert "\n" not in text
    return text


def test_one_image_is_answered_as_predict_answers(serving: Serving, colors: Classifier) -> None:
    response = serving().post("/v1/predict", files=upload(make_image("green")), params={"top_k": 2})
    assert response.status_code == 200
    [answer] = response.json()["predictions"]
    [expected] = colors.predict([Image.open(io.BytesIO(make_image("green")))], top_k=2)
    assert answer == {
        "file": "0.png",
        "label": expected.label,
        "probability": expected.probability,
        "ranking": [{"label": label, "probability": share} for label, share in expected.ranking],
        "error": None,
    }
    assert answer["label"] == "green"
    assert len(answer["ranking"]) == 2


def test_many_images_are_answered_in_their_order(serving: Serving) -> None:
    order = [*CLASSES, *reversed(CLASSES)]
    response = serving().post("/v1/predict", files=upload(*map(make_image, order)))
    assert [answer["label"] for answer in response.json()["predictions"]] == order


def test_undecodable_files_do_not_stop_the_others(serving: Serving) -> None:
    client = serving()
    cut_short = make_image("red", (64, 64))[:60]
    response = client.post("/v1/predict", files=upload(b"no image", make_image("blue"), cut_short, b""))
    assert response.status_code == 200
    first, second, third, fourth = response.json()["predictions"]
    assert second["label"] == "blue"
    assert "not an image in a known format" in first["error"]
    for failed in (first, third, fourth):
        assert failed["error"]
        assert (failed["label"], failed["probability"], failed["ranking"]) == (None, None, [])
    response = client.post("/v1/predict", files=upload(b"no image", b"nor this"))
    assert "no image could be read" in detail(response, 422)
    assert len(response.json()["predictions"]) == 2


def test_top_k_is_bounded(serving: Serving) -> None:
    client = serving()
    for top_k in ("0", "101", "x", "-1"):
        response = client.post("/v1/predict", files=upload(make_image("red")), params={"top_k": top_k})
        assert detail(response, 422).startswith("top_k: ")


def test_what_is_no_form_of_images_is_refused(serving: Serving) -> None:
    client = serving()
    assert "application/json" in detail(client.post("/v1/predict", json={"a": 1}), 415)
    assert "a bare body" in detail(client.post("/v1/predict", content=b"x"), 415)
    form = {"content-type": "multipart/form-data"}
    assert "boundary" in detail(client.post("/v1/predict", content=b"x", headers=form), 400)
    form = {"content-type": "multipart/form-data; boundary=b"}
    for body in (b"x", b"--b\r\n\r\nx\r\n--b--\r\n", b"--b\r\nContent-Disposition: x; name"):
        assert client.post("/v1/predict", content=body, headers=form).status_code in (400, 422)
    assert client.get("/v1/predict").status_code == 405
    assert detail(client.get("/docs"), 404)


# Starlette forgets, and so leaves to the collector, the temporary file of a part that never ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_forms_are_refused_and_never_an_internal_error(serving: Serving) -> None:
    client = serving()
    rng = random.Random(0)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    whole = head + make_image("red") + b"\r\n" + head + make_image("blue") + b"\r\n--b--\r\n"
    statuses = set()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(body))
            change = rng.choice([b"", b"--b", b"--b--", b"\r\n", b'filename="', b"\xff\0", rng.randbytes(5)])
            body[place : place + rng.randint(0, 9)] = change
        kind = rng.choice(["boundary=b", "boundary=b; charset=rot13", "boundary=", "boundary=\xe4"])
        headers = {"content-type": f"multipart/form-data; {kind}".encode("latin-1")}
        statuses.add(client.post("/v1/predict", content=bytes(body), headers=headers).status_code)
    assert statuses == {200, 400, 422}


def test_no_path_and_no_url_is_read_for_a_client(serving: Serving, tmp_path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(make_image("red"))
    client = serving()
    for text in (str(path), path.as_uri(), "http://127.0.0.1:9/red.png"):
        response = client.post("/v1/predict", files=[("files", (None, text))])
        assert "there is no image" in detail(response, 422)
        response = client.post("/v1/predict", files=[("files", (text, b"nothing"))])
        assert "not an image" in detail(response, 422)
        response = client.post("/v1/predict", files=[("files", (text, make_image("blue")))])
        [answer] = response.json()["predictions"]
        assert (answer["file"], answer["label"]) == (text, "blue")


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


def test_the_number_of_files_is_limited(serving: Serving) -> None:
    client = serving(limits=Limits(files=2))
    assert "2" in detail(client.post("/v1/predict", files=upload(*[make_image("red")] * 3)), 400)
    assert client.post("/v1/predict", files=upload(*[make_image("red")] * 2)).status_code == 200


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG that is that large, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pixels_are_counted_before_anything_is_decoded(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (decoded.append(self.size), load(self))[1])
    client = serving(limits=Limits(pixels=1000))
    files = upload(bomb(60_000, 60_000), bomb(40, 26), make_image("blue", (40, 25)))
    huge, larger, fits = client.post("/v1/predict", files=files).json()["predictions"]
    for refused in (huge, larger):
        assert refused["error"] == "larger than 1,000 pixels, the most that is read"
    assert fits["label"] == "blue"
    assert decoded
    assert max(width * height for width, height in decoded) <= 1000


def test_a_full_queue_says_when_to_come_again(serving: Serving, colors: Classifier) -> None:
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
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 1 s" in answer


def test_a_client_that_goes_away_leaves_no_trace(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    client = serving()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
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


def test_an_answer_holds_no_traceback(
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


def test_nobody_s_answer_is_lost_or_another_s(serving: Serving, colors: Classifier) -> None:
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


def test_the_model_is_described(serving: Serving, colors: Classifier) -> None:
    about = serving(limits=Limits(files=7)).get("/v1/model").json()
    assert about["name"] == "resnet20"
    assert about["classes"] == list(CLASSES)
    assert about["preprocessing"] == colors.preprocessing.to_dict()
    assert about["provenance"] == {"data": "colors"}
    assert about["runtime"] == {"name": "onnxruntime", "device": "cpu"}
    assert about["limits"]["files"] == 7
    assert about["explains"] is False


def test_metrics_count_what_happened_and_each_server_its_own(serving: Serving) -> None:
    client = serving()
    for _ in range(2):
        client.post("/v1/predict", files=upload(make_image("red"), b"no image"))
    client.get("/v1/nothing?x=1")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'skipnets_requests_total{path="/v1/predict",status="200"} 2.0' in lines
    assert 'skipnets_requests_total{path="other",status="404"} 1.0' in lines
    assert 'skipnets_images_total{outcome="answered"} 2.0' in lines
    assert 'skipnets_images_total{outcome="unreadable"} 2.0' in lines
    assert "skipnets_batch_images_sum 2.0" in lines
    assert any(line.startswith('skipnets_model_info{name="resnet20",runtime="onnxruntime"') for line in lines)
    with served(create_app(make_colors())) as other:
        assert "v1/predict" not in other.get("/metrics").text


def test_openapi_has_an_example_of_every_body(serving: Serving) -> None:
    described = serving().get("/openapi.json").json()
    text = json.dumps(described)
    assert {"/v1/predict", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"} <= set(
        described["paths"]
    )
    schemas = described["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in schemas
    for name in ("Answers", "ModelAnswer"):
        assert schemas[name]["examples"]
    predict = described["paths"]["/v1/predict"]["post"]
    assert predict["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["files"]
    for status in ("413", "503", "504"):
        content = predict["responses"][status]["content"]["application/json"]
        assert content["example"]["detail"]


def test_every_answer_forbids_what_a_browser_need_not_do(serving: Serving) -> None:
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


def test_examples_are_shown_by_their_number_alone(serving: Serving) -> None:
    example = Example(name="one", content=make_image("red"), media_type="image/png")
    client = serving(examples=[example])
    assert client.get("/v1/model").json()["examples"] == ["one"]
    response = client.get("/v1/examples/0")
    assert (response.content, response.headers["content-type"]) == (example.content, "image/png")
    assert "there are 1 examples" in detail(client.get("/v1/examples/1"), 404)
    assert client.get("/v1/examples/..%2Fx").status_code in (404, 422)


@pytest.mark.parametrize(
    "limits", [{"files": 0}, {"seconds": -1}, {"pixels": 10**9}, {"files": 300}, {"queue": 3}]
)
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"=\S+: must be "):
        Limits(**limits)
