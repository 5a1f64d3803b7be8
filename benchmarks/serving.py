"""What HTTP costs: `skipnets serve` over the loopback against the same network with no server around it.

    python benchmarks/serving.py
    python benchmarks/serving.py --model runs/cats/model.onnx --seconds 30 --json serving.json

What a user would otherwise take is one process that decodes and predicts files: `Classifier.predict_iter`
with the same runtime, threads, batch size and number of decoding threads. Both answer the same JPEG
photographs. It runs before and after the server, and the mean counts. The server is `skipnets serve` in a
process of its own; its clients, each of which sends an image, waits for the answer and sends the next, share
another process (this one) on the same processors. Every answer is compared with that of `predict`: none may
be lost, none may be another's. Reported are images per second and the time of a request at 1, 8 and 64
clients. Target: at 64 clients at least 0.85 of the images per second without a server. Exit status 1 means
that it was missed.

Without --model, it is densenet121 with random weights, exported to ONNX: speed does not depend on weights.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from skipnets.classifier import Prediction, load

CLIENTS = (1, 8, 64)
LIMIT = 0.85
WARM_UP = 2.0  # seconds, of which nothing is counted
TOP_K = 3
# Sums in another order: an image's neighbors in its batch change how a runtime computes.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Load:
    """What so many clients measured.

    Attributes:
        clients: How many asked at once.
        rate: Answered images per second.
        p50: Half of the requests took at most this, in seconds.
        p99: All but a hundredth took at most this.
        answers: How many were compared.
    """

    clients: int
    rate: float
    p50: float
    p99: float
    answers: int


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500×375, as photographs compress: 1/f noise in color, no two alike."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]) + 1 / 500
    paths = []
    for index in range(count):
        planes = []
        for _ in range(3):
            spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency
            plane = np.fft.irfft2(spectrum, (375, 500))
            planes.append(rng.integers(70, 180) + rng.integers(25, 60) * plane / plane.std())
        paths.append(folder / f"{index:03}.jpg")
        pixels = np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def export_densenet(folder: Path) -> Path:
    """densenet121 as ONNX; its norms have seen images, so that numbers stay of ordinary size."""
    import torch

    from skipnets.classifier import Classifier
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.deploy.export import export_model
    from skipnets.models.factory import create_model

    torch.manual_seed(0)
    model = create_model("densenet121")
    with torch.no_grad():
        model(torch.randn(8, 3, 224, 224))
    Classifier.from_model(
        model.eval(),
        classes=[f"class {index}" for index in range(model.num_classes)],
        preprocessing=Preprocessing(size=224),
    ).save(folder / "model.safetensors")
    classifier = load(folder / "model.safetensors", runtime="torch")
    export_model(classifier, folder / "model.onnx", file_format="onnx")
    return folder / "model.onnx"


def rate_without_server(options: argparse.Namespace, model: Path, paths: list[Path]) -> float:
    """Images per second of `predict_iter`, in a process of its own."""
    words = [__file__, "--alone", str(model), "--seconds", str(options.seconds), *map(str, paths)]
    words += ["--batch-size", str(options.batch_size), "--workers", str(options.workers)]
    words += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    return float(done.stdout)


def predict_alone(options: argparse.Namespace) -> float:
    """What that process does."""
    classifier = load(options.alone, threads=options.threads)
    predictions = classifier.predict_iter(
        itertools.cycle(options.images), TOP_K, batch_size=options.batch_size, workers=options.workers
    )
    start = time.perf_counter()
    taken = 0
    while time.perf_counter() - start < WARM_UP:
        taken += _batch(predictions, 1)
    # From the end of a batch to the end of another, or half of one would be counted for nothing.
    _batch(predictions, -taken % options.batch_size)
    counted = 0
    start = time.perf_counter()
    while time.perf_counter() - start < options.seconds:
        counted += _batch(predictions, options.batch_size)
    return counted / (time.perf_counter() - start)


def _batch(predictions: Iterator[Prediction], size: int) -> int:
    for _ in range(size):
        assert next(predictions).error is None
    return size


@contextmanager
def server(options: argparse.Namespace, model: Path) -> Iterator[int]:
    """The port of `skipnets serve`."""
    words = ["serve", str(model), "--port", "0", "--workers", str(options.workers)]
    words += ["--batch-size", str(options.batch_size), "--timeout", "120"]
    words += ["--threads", str(options.threads)] if options.threads else []
    process = subprocess.Popen([sys.executable, "-m", "skipnets", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r":(\d+): serving", line)
        assert found is not None, line
        yield int(found[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def request_of(path: Path) -> bytes:
    """The whole request for one image."""
    head = (
        f'--image\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + path.read_bytes() + b"\r\n--image--\r\n"
    return (
        f"POST /v1/predict?top_k={TOP_K} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=image\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """The body of the answer, which must be a good one."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return await reader.readexactly(int(length[1]))


def check(body: bytes, expected: Prediction) -> None:
    """That this is the answer to that image."""
    [answer] = json.loads(body)["predictions"]
    assert answer["file"] == Path(expected.source).name
    given = {row["label"]: row["probability"] for row in answer["ranking"]}
    for label, probability in expected.ranking[:-1]:  # the last may change places with the next one
        assert abs(given[label] - probability) < TOLERANCE, (answer, expected)


async def measure(
    port: int, clients: int, seconds: float, requests: list[bytes], expected: list[Prediction]
) -> Load:
    """Let so many clients ask for so long."""
    times: list[tuple[float, float]] = []  # of each request: when it ended, how long it took
    bodies: list[tuple[int, bytes]] = []
    asked = 0
    turns = itertools.cycle(range(len(requests)))
    start = time.perf_counter()

    async def client() -> None:
        nonlocal asked
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        while time.perf_counter() - start < WARM_UP + seconds:
            turn = next(turns)
            asked += 1
            sent = time.perf_counter()
            bodies.append((turn, await ask(reader, writer, requests[turn])))
            times.append((time.perf_counter() - start, time.perf_counter() - sent))
        writer.close()

    await asyncio.gather(*[client() for _ in range(clients)])
    assert len(bodies) == asked
    for turn, body in bodies:
        check(body, expected[turn])
    # Answers come a batch at a time: the window reaches from one of them to another.
    ends = sorted(end for end, _ in times)
    inside = [end for end in ends if end >= WARM_UP and end <= WARM_UP + seconds]
    rate = (len(inside) - 1) / (inside[-1] - inside[0])
    took = [taken for end, taken in times if end >= WARM_UP]
    percentiles = statistics.quantiles(took, n=100, method="inclusive")
    return Load(
        clients=clients,
        rate=rate,
        p50=percentiles[49],
        p99=percentiles[98],
        answers=len(bodies),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=Path, help="default: generated ones")
    parser.add_argument("--model", type=Path, default=None, help="what `skipnets serve` takes")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement")
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write every figure to this file")
    parser.add_argument("--alone", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone is not None:
        print(predict_alone(options))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        model = options.model or export_densenet(Path(folder))
        paths = options.images or write_photographs(Path(folder), 96)
        requests = [request_of(path) for path in paths]
        classifier = load(model, threads=options.threads)
        expected = classifier.predict(paths, TOP_K + 1)
        print(
            f"{classifier!r}\n{platform.processor() or platform.machine()}, {os.cpu_count()} processors, "
            f"Python {platform.python_version()}, uvicorn {importlib.metadata.version('uvicorn')}; "
            f"{len(paths)} JPEGs of {statistics.mean(map(len, requests)) / 1024:.0f} KiB, "
            f"batches of up to {options.batch_size}, {options.workers} decoding threads"
        )
        del classifier
        alone = [rate_without_server(options, model, paths)]
        loads = []
        with server(options, model) as port:
            for clients in options.clients:
                loads.append(asyncio.run(measure(port, clients, options.seconds, requests, expected)))
        alone.append(rate_without_server(options, model, paths))

    mean = statistics.mean(alone)
    print(f"no server   {mean:6.1f} images/s ({alone[0]:.1f} before, {alone[1]:.1f} after)")
    for found in loads:
        print(
            f"{found.clients:3} clients {found.rate:6.1f} images/s, {found.rate / mean:.3f} of it; "
            f"p50 {1000 * found.p50:.0f} ms, p99 {1000 * found.p99:.0f} ms; "
            f"{found.answers} answers, all there and all right"
        )
    if options.json is not None:
        figures = {"alone": alone, "loads": [asdict(found) for found in loads], "limit": LIMIT}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    shares = [found.rate / mean for found in loads if found.clients == max(CLIENTS)]
    for share in shares:
        print(f"{'holds ' if share >= LIMIT else 'MISSED'} {share:.3f} (at least {LIMIT}) at 64 clients")
    return 0 if all(share >= LIMIT for share in shares) else 1


if __name__ == "__main__":
    raise SystemExit(main())
