"""`skipnets benchmark`."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.cli.output import check_outputs, print_json, print_paths, print_tables
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.tables import make_table


def benchmark(
    model: str,
    /,
    *,
    training: bool = False,
    batch_size: list[int] | None = None,
    seconds: float = 20.0,
    compiled: Annotated[bool, Parameter(negative="--no-compiled")] = True,
    int8: Annotated[bool, Parameter(negative="--no-int8")] = True,
    calibration: str | None = None,
    json: bool = False,
    output: Path | None = None,
    threads: int | None = None,
) -> None:
    """Benchmark a classifier in every runtime on this machine, with torchvision's network as the baseline.

    The baseline of an own network (--trust) is the network itself in PyTorch.

    For example:

        skipnets benchmark runs/cats
        skipnets benchmark runs/cats/model.onnx --batch-size 1 8 --output a.json
        skipnets benchmark densenet_bc100_k12 --training --batch-size 64

    Args:
        model: A model file, a run folder, or an export, which is timed alone. With --training, also a model's
            name.
        training: Measure training steps instead of predictions: time, memory, and the largest batch that
            fits, for each way in which the network's blocks can run.
        batch_size: Images per call or training step, one or more values. Default: 1 and 16; 16 with
            --training.
        seconds: Minimum time to measure each batch size.
        compiled: Include torch.compile, which first takes a minute or two.
        int8: Include 8-bit graphs.
        calibration: Labeled images for quantization. Default: generated images, which suffice for timing.
        json: Print all measurements as JSON.
        output: A .json file for all measurements.
        threads: CPU threads of every candidate. Default: one per processor.
    """
    check_outputs(output)
    if output is not None and output.suffix.lower() != ".json":
        raise UserError(f"output={output}: must end in .json")
    if training:
        _training(model, batch_size or [16], json=json, output=output, threads=threads)
        return
    from skipnets.deploy.benchmark import compare_speeds

    table = compare_speeds(
        Path(model),
        batch_sizes=batch_size or (1, 16),
        seconds=seconds,
        threads=threads,
        compiled=compiled,
        int8=int8,
        calibration=calibration,
    )
    if output is not None:
        table.save(output)
    if json:
        print_json({**table.to_dict(), "written": [] if output is None else [str(output)]})
        return
    print_tables(table.tables())
    print_paths(output)


def _training(
    model: str, batch_sizes: list[int], *, json: bool, output: Path | None, threads: int | None
) -> None:
    """Measure time and memory of a training step for every block execution."""
    from skipnets.insight.source import architecture_of
    from skipnets.training.benchmark import training_costs

    architecture = architecture_of(model)
    costs = [
        cost
        for batch_size in batch_sizes
        for cost in training_costs(
            architecture.config,
            batch_size=batch_size,
            size=architecture.image_size(None),
            threads=threads,
            report=_print_progress,
        )
    ]
    rows = {"rows": [asdict(cost) for cost in costs]}
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json_format.dumps(rows, indent=2) + "\n", "utf-8")
    if json:
        print_json({**rows, "written": [] if output is None else [str(output)]})
        return
    headings = ("batch", "execution", "ms", "slowest", "saved MiB", "peak MiB", "largest batch")
    table = make_table(
        {name: "left" if name == "execution" else "right" for name in headings},
        (
            [
                str(cost.batch_size),
                cost.execution,
                f"{1000 * cost.seconds:.0f}",
                f"{1000 * cost.slowest:.0f}",
                f"{cost.saved_bytes / 2**20:.0f}",
                f"{cost.peak_bytes / 2**20:.0f}",
                "" if cost.largest_batch is None else str(cost.largest_batch),
            ]
            for cost in costs
        ),
    )
    print_tables([table])
    print_paths(output)


def _print_progress(line: str) -> None:
    """Print what is being measured on standard error."""
    sys.stderr.write(f"{line}\n")
