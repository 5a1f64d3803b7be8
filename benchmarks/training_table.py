"""Training steps on a CPU: the bars of `training.py`, in several runs at different times, as a table of docs.

    python benchmarks/training_table.py --runs 5 --pause 1200 --docs docs/results.md
    python benchmarks/training_table.py --runs 0 --docs docs/results.md

Each run is all of `training.py --compile`: once with the processor's instruction set and, where that is
AVX-512, once with AVX2 forced, in the libraries and in the engine. The first run of each set checks that all
variants compute the same and measures memory, too. Every run is kept in the file `--json` as soon as it ends,
and an interrupted table goes on where it stopped: `--runs` counts those that are there. `--runs 0` writes the
table of what has been measured. The share of the processors that other programs took during a run is in the
table, too: a run beside other programs says little.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from skipnets.files import atomic_path
from training import BARRED, TARGETS

AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "SKIPNETS_ENGINE_ISA": "avx2",
    # torch.compile keeps what it has compiled by graph, not by instruction set.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"torchinductor_avx2_{os.getuid()}"),
}
BEGIN, END = "<!-- training table: begin -->", "<!-- training table: end -->"

Run = dict[str, Any]


def measure(forced: dict[str, str], arguments: argparse.Namespace, *, first: bool) -> Run:
    """One run of all models with one instruction set."""
    started, before = datetime.datetime.now().astimezone(), others_seconds()
    measured: Run = {"results": []}
    for model in arguments.models:  # Each in a process of its own, as it would be trained.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.json"
            command = [sys.executable, str(Path(__file__).with_name("training.py")), "--json", str(file)]
            command += ["--rounds", str(arguments.rounds), "--models", model]
            command += [] if arguments.no_compile else ["--compile"]
            command += [] if first else ["--times-alone"]
            subprocess.run(command, check=True, env={**os.environ, **forced})
            own = json.loads(file.read_text())
        measured["machine"] = own["machine"]
        measured["results"] += own["results"]
    wall = (datetime.datetime.now().astimezone() - started).total_seconds()
    others = (others_seconds() - before) / wall / (os.cpu_count() or 1)
    return {"started": started.isoformat(timespec="minutes"), "others": round(others, 3), **measured}


def others_seconds() -> float:
    """Processor seconds, since the machine started, of everything but this program and its ended children."""
    every, own = psutil.cpu_times(), os.times()
    idle = every.idle + getattr(every, "iowait", 0)
    return float(sum(every) - getattr(every, "guest", 0) - getattr(every, "guest_nice", 0) - idle) - sum(
        own[:4]
    )


def instruction_sets() -> dict[str, dict[str, str]]:
    """The environment for each by name."""
    import torch

    name = torch.backends.cpu.get_cpu_capability()
    return {name: {}, "AVX2": AVX2} if name == "AVX512" else {name: {}}


def keep(runs: list[Run], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(runs, indent=1) + "\n")


def table(runs: list[Run]) -> str:
    """The runs as Markdown."""
    lines = []
    for processor, isa in dict.fromkeys((run["machine"]["processor"], run["isa"]) for run in runs):
        own = [run for run in runs if (run["machine"]["processor"], run["isa"]) == (processor, isa)]
        machine = own[0]["machine"]
        times = ", ".join(f"{run['started'][:16].replace('T', ' ')} ({run['others']:.0%})" for run in own)
        lines += [
            f"{processor}, {isa}, {machine['threads']} threads, torch {machine['torch']}, torchvision "
            f"{machine['torchvision']}, timm {machine['timm']}; runs of {times}; in brackets is the "
            "share of the processors that other programs took:",
            "",
            "| | time, each run | median | at most | of FMA | saved | at most | peak | at most |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for (model, variant), bars in TARGETS.items():
            rows = [row for run in own for row in rows_of(run, model) if row["variant"] == variant]
            if not rows:
                continue
            ratios = [row["time_ratio"] for row in rows]
            time_ratio = statistics.median(ratios)
            saved, peak = (
                statistics.median(row[key] for row in rows if key in row)
                for key in ("saved_ratio", "peak_ratio")
            )
            shares = [row["peak_share"] for row in rows if row["peak_share"]]
            share = f"{statistics.median(shares):.0%}" if shares else ""
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(
                f"| {model}, {variant} | {each} | {marked(time_ratio, bars[0])} | {bars[0]:.2f} | {share} | "
                f"{marked(saved, bars[1])} | {bars[1]:.2f} | {marked(peak, bars[2])} | {bars[2]:.2f} |"
            )
        lines += ["", *fastest_lines(own), ""]
    return "\n".join(lines).rstrip()


def rows_of(run: Run, model: str) -> list[dict[str, Any]]:
    return [row for result in run["results"] if result["model"] == model for row in result["rows"]]


def marked(value: float, bar: float) -> str:
    """A ratio, bold where the bar holds."""
    return f"**{value:.2f}**" if round(value, 2) <= bar else f"{value:.2f}"


def fastest_lines(runs: list[Run]) -> list[str]:
    """What the others took: without them a ratio says nothing."""
    lines = ["| s/step, median of the runs | " + " | ".join(BARRED) + " |", "|---" * (len(BARRED) + 1) + "|"]
    seconds: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for model in BARRED:
            for row in rows_of(run, model):
                seconds.setdefault(row["variant"], {}).setdefault(model, []).append(row["seconds"])
    for variant, own in seconds.items():
        cells = (f"{statistics.median(own[model]):.3f}" if model in own else "" for model in BARRED)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


def write(docs: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    before, rest = docs.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    with atomic_path(docs) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--pause", type=float, default=1200, help="seconds between the beginnings of two runs"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant in a run")
    parser.add_argument("--models", nargs="+", default=BARRED, choices=BARRED)
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile, which takes minutes"
    )
    parser.add_argument("--json", type=Path, default=Path("training-table.json"))
    parser.add_argument("--docs", type=Path, help=f"a page with the marks {BEGIN} and {END}")
    arguments = parser.parse_args()
    runs: list[Run] = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    sets = instruction_sets()
    due = time.monotonic()
    for number in range(arguments.runs):
        waiting = [isa for isa in sets if sum(run["isa"] == isa for run in runs) <= number]
        if not waiting:
            continue
        time.sleep(max(due - time.monotonic(), 0))
        due = time.monotonic() + arguments.pause
        for isa in waiting:
            print(f"run {number + 1} of {arguments.runs}, {isa}", file=sys.stderr)
            runs.append({"isa": isa, **measure(sets[isa], arguments, first=number == 0)})
            keep(runs, arguments.json)
    if not runs:
        sys.exit(f"{arguments.json}: there are no runs")
    text = table(runs)
    print(text)
    if arguments.docs is not None:
        write(arguments.docs, text)


if __name__ == "__main__":
    main()
