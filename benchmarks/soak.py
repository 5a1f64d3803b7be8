"""Hours of mixed requests to `skipnets serve`: nothing may be lost or wrong, and memory may not grow.

    python benchmarks/soak.py                                   # 30 minutes
    python benchmarks/soak.py --hours 72 --log soak.jsonl
    python benchmarks/soak.py --model runs/cats/model.onnx --minutes 5

Eight clients send images, one to four at a time, and compare every answer with that of `predict`. Between
them come requests that no server should suffer from: files that are no images, images that declare more
pixels than they hold, bodies that are too large, clients that leave in mid-request, connections that stay
silent. At the end the server is asked to stop while clients are waiting, and must answer them.

Targets: no request lost, none answered wrongly, and the server's resident memory grows by less than 1%. The
first five minutes are left out of that: in them, threads, pools and caches allocate what they keep.
Of the time after them, the median of the last fifth is compared with that of the first fifth. Exit status 1
means that a target was missed.

Without --model, it is resnet20 with random weights, exported to ONNX: a small network leaves most of the
time to the server's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from serving import TOLERANCE, write_photographs
from skipnets.classifier import Prediction, load

CLIENTS = 8
GROWTH = 0.01
WARM_UP_SECONDS = 300.0
SECONDS_BETWEEN_SAMPLES = 5.0


def export_resnet(folder: Path) -> Path:
    """resnet20 as ONNX; its norms have seen images, so that numbers stay of ordinary size."""
    import torch

    from skipnets.classifier import Classifier
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.deploy.export import export_model
    from skipnets.models.factory import create_model

    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=10)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
    classes = [f"class {index}" for index in range(10)]
    made = Classifier.from_model(model.eval(), classes=classes, preprocessing=Preprocessing(size=32))
    made.save(folder / "model.safetensors")
    export_model(
        load(folder / "model.safetensors", runtime="torch"), folder / "model.onnx", file_format="onnx"
    )
    return folder / "model.onnx"


def form(files: list[tuple[str, bytes]]) -> bytes:
    """A whole request with these files."""
    parts = [
        f'--image\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join(parts) + b"--image--\r\n"
    head = (
        "POST /v1/predict?top_k=1 HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=image\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    """Status and body of the response."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


class Soak:
    """The clients of one server, and what they counted.

    Args:
        port: The server's.
        paths: The images.
        expected: Their predictions.
    """

    def __init__(self, port: int, paths: list[Path], expected: list[Prediction]) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[float, float]] = []
        self.stopping = False
        self._port = port
        self._images = [(path.name, path.read_bytes()) for path in paths]
        self._expected = {Path(row.source).name: row for row in expected}

    async def run(self, seconds: float, process: subprocess.Popen[bytes], log: Path | None) -> None:
        """Ask for so long; then stop the server while clients are waiting."""
        workers = [asyncio.create_task(self._client(seed)) for seed in range(CLIENTS)]
        workers += [asyncio.create_task(self._nuisance(seed)) for seed in range(2)]
        start = time.monotonic()
        while time.monotonic() - start < seconds and process.poll() is None:
            await asyncio.sleep(SECONDS_BETWEEN_SAMPLES)
            resident = _resident(process.pid)
            self.samples.append((time.monotonic() - start, resident))
            if log is not None:
                line = {"seconds": self.samples[-1][0], "resident_mib": resident / 2**20, **self.counts}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        self.stopping = True
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*workers), 60)

    async def _client(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stopping:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
            except OSError:
                self.counts["refused"] += not self.stopping
                await asyncio.sleep(0.1)
                continue
            for _ in range(100):
                files = rng.sample(self._images, rng.randint(1, 4))
                self.counts["asked"] += 1
                try:
                    status, body = await ask(reader, writer, form(files))
                except (OSError, EOFError):
                    self.counts["lost"] += 1
                    break
                self._judge(status, body, [name for name, _ in files])
                if self.stopping:
                    break
            writer.close()

    def _judge(self, status: int, body: bytes, names: list[str]) -> None:
        if status == 503:
            self.counts["busy" if not self.stopping else "answered while stopping"] += 1
            return
        answers = json.loads(body).get("predictions", [])
        right = status == 200 and [answer["file"] for answer in answers] == names
        for answer in answers if right else []:
            expected = self._expected[answer["file"]]
            assert expected.probability is not None
            right &= abs(answer["probability"] - expected.probability) < TOLERANCE
        self.counts["right" if right else "wrong"] += 1

    async def _nuisance(self, seed: int) -> None:
        rng = random.Random(1000 + seed)
        name, image = self._images[0]
        huge = bytearray(image)
        frame = image.index(b"\xff\xc0")  # the JPEG's own header, whose size is made 60,000 × 60,000
        huge[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
        kinds = {
            "no image": (form([("a", b"no image")]), 422),
            "huge": (form([("a", bytes(huge))]), 422),
            "too large": (
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
                413,
            ),
            "leaves": (form([(name, image)])[: len(image) // 2], 0),
            "silent": (b"", 0),
        }
        while not self.stopping:
            kind = rng.choice(list(kinds))
            request, status = kinds[kind]
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                if status:
                    found, _ = await ask(reader, writer, request)
                    self.counts["wrong"] += found not in (status, 503)
                else:
                    writer.write(request)
                    await asyncio.sleep(rng.random())
                writer.close()
            except (OSError, EOFError):
                self.counts["lost"] += bool(status) and not self.stopping
            self.counts[kind] += 1
            await asyncio.sleep(0.05)


def _resident(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * float(os.sysconf("SC_PAGE_SIZE"))


def growth(samples: list[tuple[float, float]]) -> float | None:
    """After the warm-up: of the last fifth's median over the first's; None if it was short."""
    sizes = [size for at, size in samples if at > WARM_UP_SECONDS]
    fifth = len(sizes) // 5
    if fifth == 0:
        return None
    return statistics.median(sizes[-fifth:]) / statistics.median(sizes[:fifth]) - 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=None, help="what `skipnets serve` takes")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--hours", type=float, default=None, help="instead of --minutes")
    parser.add_argument("--log", type=Path, default=None, help="a line of JSON every 5 s")
    options = parser.parse_args()
    seconds = 3600 * options.hours if options.hours is not None else 60 * options.minutes
    if not seconds >= SECONDS_BETWEEN_SAMPLES:
        parser.error(f"it must last at least {SECONDS_BETWEEN_SAMPLES:.0f} s")

    with tempfile.TemporaryDirectory() as folder:
        model = options.model or export_resnet(Path(folder))
        paths = write_photographs(Path(folder), 32)
        classifier = load(model)
        expected = classifier.predict(paths)
        print(
            f"{classifier!r}, {platform.machine()}, {os.cpu_count()} processors, "
            f"Python {platform.python_version()}, {seconds / 60:.0f} minutes"
        )
        words = ["serve", str(model), "--port", "0"]
        with (Path(folder) / "log").open("w+b") as errors:
            process = subprocess.Popen([sys.executable, "-m", "skipnets", *words], stderr=errors)
            try:
                while (found := re.search(r":(\d+): serving", Path(errors.name).read_text())) is None:
                    assert process.poll() is None
                    time.sleep(0.1)
                soak = Soak(int(found[1]), paths, expected)
                asyncio.run(soak.run(seconds, process, options.log))
                status = process.wait(60)
            finally:
                if process.poll() is None:
                    process.kill()
            lines = len(Path(errors.name).read_text().splitlines())

    grown = growth(soak.samples)
    print(", ".join(f"{count:,} {name}" for name, count in sorted(soak.counts.items())))
    print(
        f"resident memory {soak.samples[-1][1] / 2**20:.0f} MiB at the end, "
        f"{'not compared (warm-up)' if grown is None else f'{grown:+.2%} after the warm-up'}; "
        f"exit status {status}, {lines} lines of log"
    )
    holds = soak.counts["lost"] == soak.counts["wrong"] == soak.counts["refused"] == status == 0
    holds &= grown is None or grown < GROWTH
    print("holds" if holds else f"MISSED: none lost, refused or wrong, memory below {GROWTH:+.0%}")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
