"""What a training step costs on this machine: time, memory and the largest batch, for each block execution.

Every measurement runs in a process of its own, because what one leaves behind in the allocator would change
the next one's peak. Bytes are bytes; times are in seconds; a step is forward, loss, backward and optimizer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.errors import UserError
from skipnets.models import build_model, config_from_dict, config_to_dict
from skipnets.models.family import family_of
from skipnets.models.registry import ModelConfig
from skipnets.trust import trusted_imports, trusting


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one training step costs.

    Args:
        execution: How the blocks ran.
        batch_size: Images a step.
        seconds: Median over the measured steps.
        slowest: The slowest of these.
        saved_bytes: What autograd holds between forward and backward pass, parameters and input left out.
        peak_bytes: The most memory that a step needed above model and data.
        largest_batch: How many images a step would fit into the memory that is free now; None where two peaks
            do not tell.
    """

    execution: str
    batch_size: int
    seconds: float
    slowest: float
    saved_bytes: int
    peak_bytes: int
    largest_batch: int | None = None


def training_costs(
    config: ModelConfig,
    *,
    batch_size: int,
    size: int | tuple[int, ...],
    steps: int = 5,
    device: str = "cpu",
    threads: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[StepCost]:
    """Measure a training step of a model under every block execution that it has.

    Args:
        config: The model. A network that is no part of this package must be trusted
            (`skipnets.trust.trusting`), as a process of its own imports it.
        batch_size: Images a step.
        size: Height and width of the images, in pixels.
        steps: Measured steps; one more comes before them.
        device: Where to train.
        threads: Threads of PyTorch; None leaves the choice to it.
        report: Called with what is measured next.
    """
    if batch_size < 2:
        raise UserError(f"batch_size={batch_size}: must be at least 2 for batch norms")
    executions = family_of(config).executions
    shown = "×".join(map(str, _sides(size)))
    request = {
        "size": size,
        "device": device,
        "threads": threads,
        "model": config_to_dict(config),
        "trust": trusted_imports(),
    }
    costs = []
    for execution in executions:
        report(f"training steps of {config.name}, batch of {batch_size}, {shown}: {execution}")
        cost = _measure({**request, "execution": execution, "batch_size": batch_size, "steps": steps})
        half = _measure({**request, "execution": execution, "batch_size": batch_size // 2, "steps": 0})
        costs.append(StepCost(**{**asdict(cost), "largest_batch": _largest_batch(half, cost, device)}))
    return costs


def _largest_batch(smaller: StepCost, larger: StepCost, device: str) -> int | None:
    """The batch whose peak fills the free memory, on the line through two measured peaks.

    None where the larger batch's peak is not the higher one: those of a few small images tell nothing.
    """
    if larger.peak_bytes <= smaller.peak_bytes:
        return None
    images = larger.batch_size - smaller.batch_size
    per_image = (larger.peak_bytes - smaller.peak_bytes) / images
    fixed = max(larger.peak_bytes - per_image * larger.batch_size, 0)
    return max(int((free_memory(torch.device(device)) - fixed) / per_image), 0)


def _measure(request: dict[str, Any]) -> StepCost:
    """Run `measure_step` in a fresh interpreter."""
    command = [sys.executable, "-m", "skipnets.training.benchmark", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}, out of memory?"]
        raise UserError(f"batch_size={request['batch_size']}: could not be measured ({reason[0]})")
    return StepCost(**json.loads(done.stdout.splitlines()[-1]))


def measure_step(
    model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, execution: str = "plain"
) -> StepCost:
    """Measure training steps of a model that has not run yet in this process.

    Args:
        model: In train mode.
        images: (N, C, H, W).
        labels: (N,).
        steps: Steps to time after one that is not; 0 measures memory alone.
        execution: How its blocks run, for the record.
    """
    with peak_memory(images.device) as peak:
        torch.autograd.backward(F.cross_entropy(model(images), labels))
    saved = saved_bytes(model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    seconds = [timed_step(model, optimizer, images, labels) for _ in range(steps + 1)][1:] or [0.0]
    return StepCost(
        execution=execution,
        batch_size=len(images),
        seconds=statistics.median(seconds),
        slowest=max(seconds),
        saved_bytes=saved,
        peak_bytes=peak[0],
    )


def timed_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Seconds of one training step."""
    _wait(images.device)
    start = time.perf_counter()
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(images), labels))
    optimizer.step()
    _wait(images.device)
    return time.perf_counter() - start


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd holds after a forward pass; each storage once, parameters and input not at all."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (images, *model.parameters())}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    storages = {storage.data_ptr(): storage.nbytes() for storage in (item.untyped_storage() for item in held)}
    del output
    return sum(size for address, size in storages.items() if address not in given)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Measure the most memory in use inside, above what was in use on entering; the list gets the bytes."""
    result: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.append(torch.cuda.max_memory_allocated(device) - before)
        return
    _forget_peak()
    before = _status_bytes("VmRSS")
    yield result
    result.append(_status_bytes("VmHWM") - before)


def free_memory(device: torch.device) -> int:
    """Bytes that a step could still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak() -> None:
    """Start the process's peak anew; without the right to, it counts from the process's start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status_bytes(field: str) -> int:
    return _kilobytes(Path("/proc/self/status"), field)


def _kilobytes(path: Path, field: str) -> int:
    """A field of one of Linux's memory tables, in bytes."""
    if not path.exists():
        raise UserError(f"memory on a CPU is measured through {path}, which only Linux has")
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def random_batch(
    config: ModelConfig, batch_size: int, size: int | Sequence[int], device: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in channels-last order, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch_size, config.in_chans, *_sides(size), generator=generator)
    labels = torch.randint(0, max(config.num_classes, 1), (batch_size,), generator=generator)
    return images.to(device, memory_format=torch.channels_last), labels.to(device)


def _sides(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def main(arguments: Sequence[str]) -> None:
    """Serve one request of `_measure`: JSON in, JSON out."""
    request = json.loads(arguments[0])
    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    config = config_from_dict(request["model"])
    with trusting(request.get("trust")):
        model = build_model(config)
    model = model.to(request["device"]).to(memory_format=torch.channels_last)
    model.set_block_execution(request["execution"])
    images, labels = random_batch(config, request["batch_size"], request["size"], request["device"])
    cost = measure_step(model, images, labels, steps=request["steps"], execution=request["execution"])
    sys.stdout.write(json.dumps(asdict(cost)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
