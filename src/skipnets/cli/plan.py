"""`skipnets plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skipnets.classifier import load
from skipnets.cli.output import print_json, print_tables
from skipnets.errors import UserError
from skipnets.runtimes.native import NativeRuntime
from skipnets.tables import FittingTable

_MEBI = 2**20


def plan(
    model: Path, /, *, batch_size: int = 1, rounds: int = 20, threads: int | None = None, json: bool = False
) -> None:
    """Show how the native engine runs a classifier, with measured times of every step.

    For example:

        skipnets plan runs/cats

    Args:
        model: A model file or a run folder.
        batch_size: Of as many images as threads, or more, each thread computes its own. Fewer are computed
            one by one, by all threads together.
        rounds: Number of runs; times are their medians.
        threads: CPU threads. Default: one per processor.
        json: Print the plan as JSON.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if not 1 <= value <= 1024:
            raise UserError(f"{name}={value}: must be from 1 to 1024")
    classifier, *others = load(model, runtime="native", threads=threads).members
    if any(other.architecture != classifier.architecture for other in others):
        raise UserError(f"{model} is an ensemble of different networks: name the run of one of them")
    # One plan is that of all.
    assert isinstance(classifier.runtime, NativeRuntime)
    report = classifier.runtime.plan(
        classifier.preprocessing.height_width, batch_size=batch_size, rounds=rounds
    )
    if json:
        print_json(report)
        return
    height, width = classifier.preprocessing.size
    total = sum(step["seconds"] for step in report["steps"])
    headings = ("step", "output", "algorithm", "MMACs", "MiB", "ms", "share of peak")
    table = FittingTable(
        {name: "left" if name in ("step", "output", "algorithm") else "right" for name in headings},
        map(_cells, report["steps"]),
        optional=["MiB", "output"],
        title=(
            f"Images of {height}×{width}, {batch_size} at once: {total * 1e3:.2f} ms each "
            f"with {report['threads']} threads of {report['isa']}"
            + (f", in each of the ensemble's {1 + len(others)} networks\n" if others else "\n")
            + f"Peak is {report['peak_macs'] / 1e9:.0f} GMAC/s; "
            "Winograd's algorithm, which needs fewer MACs, can exceed it."
        ),
    )
    print_tables([table])


def _cells(step: dict[str, Any]) -> list[str]:
    return [
        step["name"],
        "×".join(map(str, step["shape"])),
        step["algorithm"],
        f"{step['macs'] / 1e6:.2f}",
        f"{step['bytes'] / _MEBI:.2f}",
        f"{step['seconds'] * 1e3:.3f}",
        f"{step['share_of_peak']:.2f}",
    ]
