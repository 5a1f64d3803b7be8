"""A training step on a GPU: the part of `training.py` that `--device cuda` runs.

    python benchmarks/training.py --device cuda --json training-gpu.json
    python benchmarks/training.py --device cuda --seconds 400

Compared are torchvision's models (channels_last unless said otherwise), timm's, MONAI's where it is
installed, torchvision under torch.compile, the whole step of torchvision captured in a CUDA graph, and this
project's models with their default settings (`auto`), plain, and with recomputed bottlenecks; `auto` also
captured in a CUDA graph, and compiled with CUDA graphs around its operators. A step is forward, loss,
backward and fused SGD on random images that lie on the GPU; weights are random. Last, `skipnets train` is
run for a few epochs on JPEG files, and its images a second are compared with those of the bare step.

Before anything is timed, gradients under autocast are compared with float64; that this project's are as exact
as torchvision's is said or denied. The variants of a table take turns; each turn is a few steps
between two synchronizations, and the median turn counts. Peak memory is that of one step above what model,
gradients' and optimizer's state take before. Compilers run in processes of their own, at low priority, beside
the first tables, and are timed last. Tables come in the order of their importance, and what does not fit into
`--seconds` is left out and named. All together takes less than five minutes, and nothing is asked.

Limits: multiplications and additions (three times those of the forward pass) at the card's measured rate of
large matrix products, and what the kernels of `skipnets.ops.triton` must read and write of dense blocks
alone, at the card's measured rate of copying.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import gc
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from skipnets.models import create_model, model_config
from skipnets.models.accounting import macs
from skipnets.models.family import network_graph
from skipnets.models.graph import ExecutionPolicy
from skipnets.models.registry import DenseNetConfig

BASELINE = "torchvision"
ROUNDS, STEPS = 4, 4
TIMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


class Table(NamedTuple):
    """What is compared on one model."""

    model: str
    batch_size: int
    size: int
    precision: str
    variants: tuple[str, ...]

    @property
    def title(self) -> str:
        """What tells it from the others."""
        return f"{self.model}, batch of {self.batch_size}, {self.size}×{self.size}, {self.precision}"


ALL = (BASELINE, "auto", "plain", "linear-recompute", "torchvision, CUDA graph", "auto, CUDA graph")
TABLES = (
    Table("densenet121", 64, 224, "bf16", ALL),
    Table("densenet121", 256, 224, "bf16", ALL),
    Table("densenet_bc100_k12", 256, 32, "bf16", ALL),
    Table("densenet121", 64, 224, "tf32", (BASELINE, "auto", "plain")),
    Table("densenet121", 128, 224, "bf16", (BASELINE, "auto")),  # What `EPOCH` is compared with.
    Table("resnet50", 64, 224, "bf16", (BASELINE, "auto")),
    Table("densenet121", 64, 224, "fp16", (BASELINE, "auto", "linear-recompute")),
    Table("densenet201", 64, 224, "bf16", (BASELINE, "auto", "torchvision, CUDA graph")),
    Table(
        "densenet121",
        64,
        224,
        "bf16",
        (
            BASELINE,
            "torchvision, NCHW",
            "torchvision, memory_efficient",
            "timm",
            "MONAI",
            "auto, compiled reduce-overhead",
        ),
    ),
)
EPOCH = Table("densenet121", 128, 224, "bf16", ())
EPOCHS, JPEGS = 3, 8400
COMPILED = {
    "default": (TABLES[1], TABLES[2], TABLES[0]),
    "reduce-overhead": (TABLES[2], TABLES[1], TABLES[0]),
}
BARS = {  # time against BASELINE, or against the fastest of all baselines
    ("densenet121", 64, "bf16"): ("eager", 0.50, 0.35),
    ("densenet121", 256, "bf16"): ("all", 0.70, 0.50),
    ("densenet_bc100_k12", 256, "bf16"): ("all", 0.65, 0.40),
    ("densenet121", 64, "tf32"): ("eager", 0.75, 0.55),
}


def build(table: Table, variant: str, device: str) -> nn.Module:
    """A variant's model in training mode."""
    name = variant.split(",")[0]
    config = model_config(table.model)
    with torch.device(device):
        if name == "timm":
            import timm

            model: nn.Module = timm.create_model(table.model, num_classes=config.num_classes)
        elif name == "MONAI":
            from monai.networks.nets import DenseNet121

            model = DenseNet121(spatial_dims=2, in_channels=3, out_channels=config.num_classes)
        elif name != BASELINE:
            model = create_model(table.model)
            model.set_block_execution(cast(ExecutionPolicy, name))
        elif isinstance(config, DenseNetConfig):
            from training import torchvision_densenet

            model = torchvision_densenet(config, "memory_efficient" in variant)
        else:
            model = torchvision.models.get_model(table.model)
    order = torch.contiguous_format if "NCHW" in variant else torch.channels_last
    return model.to(device).to(memory_format=order).train()


class Training:
    """Steps of one variant."""

    def __init__(self, table: Table, variant: str, device: str, mode: str | None = None) -> None:
        self.model = build(table, variant, device)
        mode = variant.partition("compiled ")[2] or mode
        self.run = torch.compile(self.model, mode=mode) if mode is not None else self.model
        fused = {"fused": True} if device == "cuda" else {}
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, **fused)
        order = torch.contiguous_format if "NCHW" in variant else torch.channels_last
        size = (table.batch_size, 3, table.size, table.size)
        self.images = torch.randn(size, device=device).contiguous(memory_format=order)
        self.labels = torch.arange(table.batch_size, device=device) % 10
        self.device, self.dtype = device, TIMES[table.precision]
        self.scaler = torch.amp.GradScaler(device) if self.dtype == torch.float16 else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def eager_step(self) -> None:
        """Operation by operation."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device, self.dtype if mixed else torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(self.run(self.images), self.labels)
        if self.scaler is None:
            torch.autograd.backward(loss)
            self.optimizer.step()
        else:
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    def step(self) -> None:
        """As the variant does it."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.eager_step()

    def warm_up(self, steps: int = 3) -> None:
        """Let everything be chosen and compiled."""
        for _ in range(steps):
            self.eager_step()
        synchronize(self.device)

    def capture(self) -> None:
        """The whole step as one CUDA graph."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.warm_up(2)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.eager_step()
        self.graph = graph
        self.step()
        synchronize(self.device)

    def peak_bytes(self) -> int:
        """Of one step."""
        if self.device != "cuda":
            return 0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.eager_step()
        synchronize(self.device)
        return torch.cuda.max_memory_allocated() - before

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of a step, and how long Python was busy with it."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        issued = time.perf_counter()
        synchronize(self.device)
        return (time.perf_counter() - start) / steps, (issued - start) / steps


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def gradient_error(variant: str, device: str, count: int = 16, size: int = 128) -> float:
    """Of densenet121's gradients on a few images under autocast, against float64; relative, all together."""
    table = Table("densenet121", count, size, "bf16", ())
    torch.manual_seed(0)
    training = Training(table, variant, device)
    torch.manual_seed(0)
    exact = build(table, BASELINE, device).double()
    training.model.load_state_dict(
        {key: value.float() for key, value in exact.state_dict().items()}, strict=False
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        loss = F.cross_entropy(training.model(images), training.labels)
    torch.autograd.backward(loss)
    torch.autograd.backward(F.cross_entropy(exact(images.double()), training.labels))
    own = dict(training.model.named_parameters())
    error = scale = 0.0
    for name, parameter in exact.named_parameters():
        expected, found = parameter.grad, own[name].grad
        assert expected is not None
        assert found is not None
        error += float((found.double() - expected).square().sum())
        scale += float(expected.square().sum())
    return (error / scale) ** 0.5


def limits(table: Table, rates: tuple[float, float]) -> tuple[float, float]:
    """Seconds of a step by arithmetic, and by the traffic of dense blocks."""
    config = model_config(table.model)
    arithmetic = (
        6.0 * sum(macs(network_graph(config), (table.size, table.size))) * table.batch_size / rates[0]
    )
    if not isinstance(config, DenseNetConfig):
        return arithmetic, 0.0
    itemsize = TIMES[table.precision].itemsize
    side = table.size // 4 if config.stem == "imagenet" else table.size
    assert config.stem_channels is not None
    channels, k, moved = config.stem_channels, config.growth_rate, 0.0
    bottleneck = 4 * k
    for layers in config.block_config:
        rows = table.batch_size * side * side
        for index in range(layers):
            width = channels + index * k
            moved += rows * itemsize * (5 * width + 13 * bottleneck + 5 * k)
        channels, side = (channels + layers * k) // 2, side // 2
    return arithmetic, moved / rates[1]


def measured_rates(device: str) -> tuple[float, float]:
    """Operations a second of a large matrix product in bfloat16, and bytes a second read or written."""
    n = 8192 if device == "cuda" else 256
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    b, c = (torch.empty(8 if device == "cuda" else 1, n, n, device=device) for _ in range(2))

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * n**3 / best(lambda: a @ a), 2 * b.nbytes / best(lambda: c.copy_(b))


def measure(table: Table, device: str) -> list[dict[str, Any]]:
    """The rows of a table."""
    trainings: dict[str, Training] = {}
    rows: dict[str, dict[str, Any]] = {}
    for variant in table.variants:
        try:
            training = Training(table, variant, device)
            training.warm_up()
            rows[variant] = {"variant": variant, "peak_bytes": training.peak_bytes()}
            if "CUDA graph" in variant:
                training.capture()
            trainings[variant] = training
        except Exception as error:
            print(f"{variant}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            rows.pop(variant, None)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in trainings}
    for round_number in range(ROUNDS):
        names = list(trainings)
        for name in names[round_number:] + names[:round_number]:
            trainings[name].step()
            times[name].append(trainings[name].seconds(STEPS))
    for name, found in times.items():
        rows[name] |= {
            "seconds": statistics.median(step for step, _ in found),
            "fastest": min(step for step, _ in found),
            "slowest": max(step for step, _ in found),
            "python_seconds": statistics.median(python for _, python in found),
        }
        report: dict[str, str] = getattr(trainings[name].model, "block_execution_report", dict)()
        if report:
            rows[name]["execution"] = sorted(set(report.values()))
    return list(rows.values())


@contextlib.contextmanager
def compilers(tables: tuple[Table, ...], device: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that compile torchvision's models; they measure when they are written to."""
    found = {}
    for mode in COMPILED:
        if tables:
            command = [sys.executable, str(Path(__file__).with_name("training.py"))]
            command += ["--device", "cuda"] if device == "cuda" else ["--dry"]
            environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "3"}
            found[mode] = subprocess.Popen(
                [*command, "--compile-mode", mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                preexec_fn=functools.partial(os.nice, 10),
            )
    try:
        yield found
    finally:
        for process in found.values():
            process.kill()
            process.wait()


def compile_and_wait(mode: str, tables: tuple[Table, ...], device: str) -> None:
    """What such a process does: it prints a JSON line for each table, and an empty one at the end."""
    compiled = []
    for table in tables:
        training = Training(table, BASELINE, device, mode)
        training.warm_up(4)
        compiled.append((table, training, training.peak_bytes()))
        if device == "cuda":  # Leave the memory to those who are measured before.
            torch.cuda.empty_cache()
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    if not sys.stdin.readline():  # Nobody waits any more.
        return
    for table, training, peak in compiled:
        training.warm_up(2)
        times = [training.seconds(STEPS)[0] for _ in range(ROUNDS)]
        row = {
            "variant": f"torchvision, torch.compile {mode}",
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "peak_bytes": peak,
        }
        print(json.dumps({"title": table.title, "row": row}), flush=True)
    print(flush=True)


def collect_compiled(
    processes: dict[str, subprocess.Popen[str]], deadline: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, row) of everything that was compiled in time; one process measures at a time."""
    for mode, process in processes.items():
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
        while select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
            line = process.stdout.readline().strip()
            if not line:
                break
            found = json.loads(line)
            yield found["title"], found["row"]
        else:
            print(f"torch.compile {mode}: not ready in time", flush=True)


def show(table: Table, rows: list[dict[str, Any]], limit: tuple[float, float]) -> None:
    """Print a table, and what its bars say."""
    print(
        f"\n{table.title}: limits {limit[0] * 1e3:.1f} ms (arithmetic), "
        f"{limit[1] * 1e3:.1f} ms (traffic of dense blocks)"
    )
    print(
        f"{'':36}{'ms':>8}{'spread':>15}{'img/s':>8}{'ratio':>7}{'Python ms':>11}{'peak MiB':>10}{'ratio':>7}"
    )
    base = next((row for row in rows if row["variant"] == BASELINE), None)
    for row in rows:
        spread = f"{row['fastest'] * 1e3:.1f}–{row['slowest'] * 1e3:.1f}"
        ratio = f"{row['seconds'] / base['seconds']:7.3f}" if base else f"{'':7}"
        peak = f"{row['peak_bytes'] / base['peak_bytes']:7.3f}" if base and base["peak_bytes"] else ""
        print(
            f"{row['variant']:36}{row['seconds'] * 1e3:8.2f}{spread:>15}"
            f"{table.batch_size / row['seconds']:8.0f}{ratio}{row.get('python_seconds', 0) * 1e3:11.1f}"
            f"{row['peak_bytes'] / 2**20:10.0f}{peak}"
        )
        for line in row.get("execution", ()):
            print(f"    {line}")
    own = next((row for row in rows if row["variant"] == "auto"), None)
    bar = BARS.get((table.model, table.batch_size, table.precision))
    if own and base and bar and len(table.variants) > 2:
        foreign = [row for row in rows if row["variant"].startswith((BASELINE, "timm"))]
        against = base if bar[0] == "eager" else min(foreign, key=lambda row: row["seconds"])
        ratio = own["seconds"] / against["seconds"]
        print(f"  auto / {against['variant']}: {ratio:.3f} (bar {bar[1]:.2f}, aim {bar[2]:.2f})", flush=True)


def epoch(device: str, jpegs: int, table: Table) -> dict[str, Any]:
    """Images a second of the fastest epoch of `skipnets train`, and how long its process lived after it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with ProcessPoolExecutor() as pool:
            list(pool.map(functools.partial(write_jpeg, root / "images"), range(jpegs), chunksize=100))
        words = ["train", root / "images", "--out", root / "run", "--recipe", "scratch"]
        words += ["--model", table.model, "--size", table.size, "--batch-size", table.batch_size]
        words += ["--epochs", EPOCHS, "--duplicates", "ignore", "--fractions", "0.98", "0.01", "0.01"]
        words += [] if device == "cuda" else ["--accelerator", "cpu"]
        command = [sys.executable, "-m", "skipnets", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"skipnets train: {done.stderr[-500:]}")
        with (root / "run/metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        ended = time.time() - (root / "run/evaluation.json").stat().st_mtime
        return {
            "epochs": [float(row["seconds"]) for row in rows],
            "images_per_second": max(float(row["images_per_second"]) for row in rows),
            "seconds_after_the_last_file": ended,
        }


def write_jpeg(folder: Path, number: int) -> None:
    """A photo-like image of 500×400 of one of ten classes, each another one."""
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (10, 13, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC)
    grain = generator.integers(-12, 13, (400, 500, 1))
    pixels = np.clip(np.asarray(image, np.int16) + grain, 0, 255).astype(np.uint8)
    path = folder / str(number % 10) / f"{number:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=85)


def show_epoch(found: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Print what the epochs say, beside the bare step's images a second."""
    print(f"\nskipnets train, {EPOCH.title}, {JPEGS:,} JPEGs of 500×400: epochs of", end=" ")
    print(", ".join(f"{seconds:.1f} s" for seconds in found["epochs"]), end="; ")
    print(f"{found['images_per_second']:.0f} img/s at best; the process ended", end=" ")
    print(f"{found['seconds_after_the_last_file']:.1f} s after its last file")
    bare = next(
        (
            result["batch_size"] / row["seconds"]
            for result in results
            if (result["model"], result["batch_size"]) == (EPOCH.model, EPOCH.batch_size)
            for row in result["rows"]
            if row["variant"] == "auto"
        ),
        None,
    )
    if bare:
        print(f"  epoch / bare step: {found['images_per_second'] / bare:.2f} (bar 0.85)", flush=True)


def main(arguments: argparse.Namespace) -> None:
    """Everything, in the order of its importance, while there is time."""
    device, start = arguments.device, time.monotonic()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    tables: tuple[Table, ...] = TABLES
    if arguments.dry:  # To try the script itself.
        tables = tuple(table._replace(batch_size=2, size=32) for table in TABLES[:1])
    if arguments.compile_mode:
        compiled = tables if arguments.dry else COMPILED[arguments.compile_mode]
        compile_and_wait(arguments.compile_mode, compiled, device)
        return
    machine = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    results: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []

    def save() -> None:
        if arguments.json:
            content = {"machine": machine, "results": results, "epochs": epochs}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")

    wanted = tables if arguments.compile else ()
    with compilers(wanted, device) as processes:
        errors = {
            name: gradient_error(name, device, *((2, 64) if arguments.dry else ()))
            for name in (BASELINE, "auto")
        }
        print("error of the gradients:", {name: f"{error:.2e}" for name, error in errors.items()}, flush=True)
        if errors["auto"] > 1.1 * errors[BASELINE]:
            print("THE GRADIENTS ARE LESS EXACT THAN TORCHVISION'S", flush=True)
        rates = measured_rates(device)
        print(f"matrix products {rates[0] / 1e12:.0f} TFLOP/s, copies {rates[1] / 1e12:.2f} TB/s", flush=True)
        for table in tables:
            if time.monotonic() - start > arguments.seconds:
                print(f"left out, as time is up: {table.title}: {', '.join(table.variants)}")
                continue
            rows = measure(table, device)
            limit = limits(table, rates)
            results.append({**table._asdict(), "limits": limit, "rows": rows})
            show(table, rows, limit)
            print(f"  at {time.monotonic() - start:.0f} s", flush=True)
            save()
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        if time.monotonic() - start > arguments.seconds and not arguments.dry:
            print("left out, as time is up: epochs of skipnets train")
        else:
            small = EPOCH._replace(model="densenet_bc40_k12", batch_size=8, size=32)
            epochs.append(epoch(device, *((60, small) if arguments.dry else (JPEGS, EPOCH))))
            show_epoch(epochs[-1], results)
            save()
        for title, row in collect_compiled(processes, start + arguments.seconds + arguments.compile_seconds):
            measured = zip(tables, results, strict=False)
            found = next((pair for pair in measured if pair[0].title == title), None)
            if found is None:
                continue
            table, result = found
            result["rows"].append(row)
            show(table, result["rows"], result["limits"])
            save()
