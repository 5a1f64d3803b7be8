"""What keeping the memory of large feature maps brings in CPU training (`skipnets.ops.memory`).

    python benchmarks/allocator.py --json allocator.json

Training steps of densenet121 under `linear` execution, each variant in processes of its own that take turns:

- skipnets: large maps come from `skipnets.ops.memory`;
- C library: they come from PyTorch's allocator, as all else does;
- C library, tuned: likewise, after mallopt has forbidden mappings of their own for large pieces, and raised
  the trim threshold to its limit, so that freed memory is kept;
- jemalloc: likewise, with jemalloc preloaded and told to keep freed pages. Left out where it is not installed
  (Debian: libjemalloc2).

All variants must come to the same loss before their times are compared. Reported are the median step with its
quartiles, page faults per step (minor ones, after the first steps), and the largest resident memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from skipnets.machine import library_versions, processor
from skipnets.models import create_model
from skipnets.ops import chunks

VARIANTS = ("skipnets", "C library", "C library, tuned", "jemalloc")
WARM_UP = 2
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
JEMALLOC_OPTIONS = "dirty_decay_ms:-1,muzzy_decay_ms:-1"
JEMALLOC = next(iter(sorted(Path("/usr/lib").glob("*/libjemalloc.so*"))), None)


class _WithoutMemory:
    """Stands in for `skipnets.ops.memory.MEMORY`: every map is newly allocated."""

    def storage(self, size: int) -> torch.UntypedStorage:
        return torch.empty(size, dtype=torch.uint8).untyped_storage()


def tune_the_c_library() -> None:
    """Keep freed memory in the process, however large it was."""
    library = ctypes.CDLL(None)
    # M_MMAP_THRESHOLD would not do: glibc takes at most 32 MiB, and maps of a batch are larger.
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        if library.mallopt(option, value) != 1:
            raise SystemExit(f"mallopt({option}, {value}) failed")


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps in this process."""
    if variant != "skipnets":
        vars(chunks)["MEMORY"] = _WithoutMemory()
    if variant == "C library, tuned":
        tune_the_c_library()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_model(options.model, num_classes=10)
    model.set_block_execution("linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    labels = torch.arange(options.batch_size) % 10
    seconds, loss, faults = [], torch.zeros(()), 0
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds[WARM_UP:],
        "faults": (usage.ru_minflt - faults) / options.steps,
        "peak_bytes": usage.ru_maxrss * 1024,  # Linux counts KiB
        "loss": float(loss),
    }


def run(variant: str, words: list[str]) -> dict[str, Any]:
    """Run the steps in a process of their own."""
    environment = dict(os.environ)
    if variant == "jemalloc":
        environment |= {"LD_PRELOAD": str(JEMALLOC), "MALLOC_CONF": JEMALLOC_OPTIONS}
    done = subprocess.run(
        [sys.executable, __file__, *words, "--variant", variant],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(options: argparse.Namespace, words: list[str]) -> list[dict[str, Any]]:
    variants = [name for name in VARIANTS if name != "jemalloc" or JEMALLOC is not None]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for turn in range(options.rounds):
        for name in variants[:: -1 if turn % 2 else 1]:
            results[name].append(run(name, words))
    expected = results["skipnets"][0]["loss"]
    rows = []
    for name, found in results.items():
        for each in found:
            if abs(each["loss"] - expected) > 1e-4 * abs(expected):
                raise SystemExit(f"{name}: loss {each['loss']}, not {expected}; nothing is compared")
        seconds = [value for each in found for value in each["seconds"]]
        low, median, high = (float(each) for each in np.quantile(seconds, (0.25, 0.5, 0.75)))
        rows.append(
            {
                "variant": name,
                "seconds": median,
                "quartiles": [low, high],
                "faults": statistics.median(each["faults"] for each in found),
                "peak_bytes": max(each["peak_bytes"] for each in found),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="densenet121")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="that are timed, in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant is not None:
        print(json.dumps(measure(options.variant, options)))
        return
    rows = compare(options, sys.argv[1:])
    machine = {
        "processor": processor(),
        "threads": options.threads,
        "c_library": " ".join(platform.libc_ver()),
        "jemalloc": None if JEMALLOC is None else JEMALLOC.resolve().name,
        **library_versions(("torch", "skipnets")),
    }
    print(f"{options.model}, {options.batch_size} images of {options.size}×{options.size}; {machine}")
    print(f"{'variant':<18}{'ms per step':>12}{'quartiles':>16}{'faults per step':>17}{'peak MiB':>10}")
    for row in rows:
        low, high = (f"{1000 * value:.0f}" for value in row["quartiles"])
        print(
            f"{row['variant']:<18}{1000 * row['seconds']:>12.0f}{f'{low}–{high}':>16}"
            f"{row['faults']:>17,.0f}{row['peak_bytes'] / 2**20:>10,.0f}"
        )
    if options.json is not None:
        report = {"settings": vars(options) | {"json": None}, "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
