"""`skipnets benchmark`."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from skipnets.cli.output import print_table
from skipnets.deploy.benchmark import SpeedTable
from skipnets.files import atomic_path


def benchmark(
    model: str,
    /,
    *,
    training: bool = False,
    batch_size: list[int] | None = None,
    seconds: float = 20.0,
    compiled: bool = True,
    int8: bool = True,
    calibration: str | None = None,
    json: Path | None = None,
    threads: int | None = None,
) -> None:
    """Time a classifier in every runtime on this machine, beside torchvision's network of the same weights.

    For example:

        skipnets benchmark runs/cats
        skipnets benchmark runs/cats/model.onnx --batch-size 1 8 --json speeds.json
        skipnets benchmark densenet_bc100_k12 --training --batch-size 64

    Args:
        model: A model file, a run folder, or an export, which is timed alone. With --training also a model's
            name.
        training: Measure training steps instead of predictions: time, memory, and the largest batch that
            fits, for each way in which dense blocks can run.
        batch_size: Images a call or step, or several such numbers. Default: 1 and 16; 16 with --training.
        seconds: How long the timing of one batch size takes, at least.
        compiled: Time torch.compile, too; it first takes a minute or two.
        int8: Time 8-bit graphs, too.
        calibration: Labeled images to quantize with. Default: generated ones, enough to time.
        json: A file to write every figure to.
        threads: CPU threads of every candidate. Default: one a processor.
    """
    if training:
        _training(model, batch_size or [16], json=json, threads=threads)
        return
    from skipnets.deploy.benchmark import compare_speeds

    table = compare_speeds(
        Path(model),
        batches=batch_size or (1, 16),
        seconds=seconds,
        threads=threads,
        compiled=compiled,
        int8=int8,
        calibration=calibration,
    )
    if json is not None:
        table.save(json)
    print_speeds(table)


def _training(model: str, batches: list[int], *, json: Path | None, threads: int | None) -> None:
    """Time and memory of a training step, under every execution of dense blocks."""
    from skipnets.insight.source import architecture_of
    from skipnets.training.benchmark import training_costs

    found = architecture_of(model)
    costs = [
        cost
        for batch in batches
        for cost in training_costs(
            found.config, batch_size=batch, size=max(found.input_size), threads=threads, report=_say
        )
    ]
    if json is not None:
        with atomic_path(json) as temporary:
            temporary.write_text(
                json_format.dumps([asdict(cost) for cost in costs], indent=2) + "\n", "utf-8"
            )
    shown = Table(box=None, pad_edge=False)
    for heading in ("batch", "execution", "ms", "slowest", "saved MiB", "peak MiB", "largest batch"):
        shown.add_column(heading, justify="left" if heading == "execution" else "right")
    for cost in costs:
        shown.add_row(
            str(cost.batch_size),
            cost.execution,
            f"{1000 * cost.seconds:.0f}",
            f"{1000 * cost.slowest:.0f}",
            f"{cost.saved_bytes / 2**20:.0f}",
            f"{cost.peak_bytes / 2**20:.0f}",
            "" if cost.largest_batch is None else str(cost.largest_batch),
        )
    print_table(shown)


def _say(line: str) -> None:
    """What is being measured."""
    sys.stderr.write(f"{line}\n")


def print_speeds(table: SpeedTable) -> None:
    """The lines of a speed table, fastest first, under what they were measured on."""
    height, width = table.size
    shown = Table(
        title=(
            f"{table.model}, images of {height}×{width}: {table.macs / 1e6:,.0f} million MACs\n"
            f"{table.machine['processor']}, {table.machine['threads']} threads, "
            f"{table.sgemm_macs / 1e9:,.0f} thousand million MACs/s in SGEMM"
        ),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("batch", "candidate", "ms", "quartiles", "of the fastest baseline", "of the limit"):
        shown.add_column(heading, justify="left" if heading == "candidate" else "right")
    for row in sorted(table.rows, key=lambda row: (row.batch, row.seconds)):
        low, high = row.quartiles
        shown.add_row(
            str(row.batch),
            row.candidate,
            f"{1000 * row.seconds:.1f}",
            f"{1000 * low:.1f}–{1000 * high:.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.limit_share:.0%}",
        )
    print_table(shown)
