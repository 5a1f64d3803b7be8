r"""Test accuracy for equal processor time: `skipnets train DATA --time …` against what else one would take.

    python benchmarks/datasets.py --out datasets
    python benchmarks/accuracy.py datasets --out accuracy                   # 6 sets, 1 seed: about 2 h 20 min
    python benchmarks/accuracy.py datasets --out accuracy --seeds 0 1 2     # about 6 h 30 min
    python benchmarks/accuracy.py datasets --out accuracy --datasets cifar10 --budget 1200 --seeds 0 1 2
    python benchmarks/accuracy.py datasets --out accuracy --datasets digits --programs skipnets --budget 120

Every program trains from random weights on one core, to which it is bound, with its defaults. The peers get
images of the size that `datasets.py` names; `skipnets` chooses by itself. `accuracy_peers.py` says what each
peer's defaults are. The budget is processor time: user and system of the whole command and all that it
starts, from imports to the evaluation on the test images. `skipnets` is told its time, and measures it with
the processor's clock here, so that it gets its share of a busy machine, too. A peer gets as many epochs as
fit, by two short runs that are not counted, so that its schedule ends within the budget: at most 5% above
it, and less than an epoch below. Where a run was more than 5% off although another time or number of epochs
would have been nearer, it is done once more, and the second counts. The table shows the processor time where
it is more than 5% off.

Peers take 15% of the training images for validation, the same for all, other ones for each seed; `skipnets`
divides the training folder by itself. The peers' environment, `OUT/peers`, is built at first, with the torch
and torchvision of the Python that runs this.

OUT/results.json, or the file that `--results` names, holds every cell (program, set, budget, seed) as soon as
it is measured, with the processor it was measured on; a cell in it is not measured again, so that the same
command goes on after an interruption. `--again skipnets` forgets a program's cells, such as after a change.
`--table` only prints what is there. The project's own cells and the table of them are written by

    python benchmarks/accuracy.py datasets --out accuracy --results docs/data/equal-time.json \
        --docs docs/results.md --seeds 0 1 2

All cells of a seed are measured on one processor, or they could not be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from datasets import DATASETS
from skipnets.files import atomic_path
from skipnets.machine import processor

PEERS = ("ultralytics", "fastai-resnet18", "fastai-xresnet18", "timm-resnet18")
PROGRAMS = ("skipnets", *PEERS)
SETS = ("digits", "textures", "signs", "sign-digits", "clothing", "cifar10-10k")
PEER_PACKAGES = ("ultralytics==8.4.190", "fastai==2.8.12", "timm==1.0.31", "psutil")
# skipnets train DATA --time TIME --out RUN --seed SEED, with the processor's clock for the wall's.
SKIPNETS = """
import sys
from skipnets.training import TrainConfig, budget, train
from skipnets.training.meter import processor_seconds
budget.clock = processor_seconds
data, time, out, seed = sys.argv[1:]
train(TrainConfig(data=data, time=time, out=out, seed=int(seed)), started=0.0)
"""
TOLERANCE = 0.05
BEGIN, END = "<!-- equal time: begin -->", "<!-- equal time: end -->"
VALIDATION_SHARE = 0.15


class FailedError(Exception):
    """A program did not do its work; the message is the end of its output."""


class Command(NamedTuple):
    """What a command took, in seconds."""

    processor: float
    wall: float


class Bench:
    """Measures cells, and keeps them.

    Args:
        data: The folder that `datasets.py` wrote.
        out: Where the peers' environment, the time of their epochs and logs go.
        results: The file of cells.
        core: The core that programs are bound to.
    """

    def __init__(self, data: Path, out: Path, results: Path, core: int) -> None:
        self.data = data
        self.out = out
        self.core = core
        self.results = results
        self.cells: dict[str, dict[str, Any]] = read(results)
        self.epochs = out / "epochs.json"
        self.epoch_times: dict[str, dict[str, float]] = read(self.epochs)
        self.machine = {
            "processor": processor(),
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
        }

    def forget(self, program: str) -> None:
        """Drop a program's cells, so that it is measured anew."""
        self.cells = {key: cell for key, cell in self.cells.items() if key.split("|")[0] != program}

    def cell(self, program: str, name: str, budget: float, seed: int) -> dict[str, Any]:
        """The cell of a program, a set, a budget and a seed, measured if it is not there yet."""
        key = f"{program}|{name}|{budget:g}|{seed}"
        if key not in self.cells:
            measure = self.measure_skipnets if program == "skipnets" else self.measure_peer
            self.cells[key] = measure(program, name, budget, seed) | self.machine
            write(self.results, self.cells)
        return self.cells[key]

    def measure_skipnets(self, program: str, name: str, budget: float, seed: int) -> dict[str, Any]:
        """Run `skipnets train` with its defaults and the budget as its time."""
        seconds = budget
        for attempt in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                command = [sys.executable, "-c", SKIPNETS, str(self.data / name), f"{seconds:.1f}s"]
                command += [str(run), str(seed)]
                took = self.run(command, Path(folder), f"{program}-{name}-{budget:g}-{seed}")
                evaluation = json.loads((run / "evaluation.json").read_text())
                chosen = (run / "run.yaml").read_text()
            if attempt == 2 or abs(took.processor / budget - 1) <= TOLERANCE:
                break
            seconds *= budget / took.processor
        return {
            "accuracy": evaluation["accuracy"],
            "tested": evaluation["images"],
            "processor_seconds": took.processor,
            "wall_seconds": took.wall,
            "attempts": attempt,
            "time": seconds,
            "config": chosen,
        }

    def measure_peer(self, program: str, name: str, budget: float, seed: int) -> dict[str, Any]:
        """Train a peer for as many epochs as fit."""
        key = f"{program}|{name}"
        if key not in self.epoch_times:
            self.epoch_times[key] = self.probe_epochs(program, name, budget)
        times = self.epoch_times[key]
        for attempt in (1, 2):
            epochs = fitting_epochs(budget, times["rest"], times["epoch"])
            result = self.train_peer(program, name, epochs=epochs, seed=seed) | {"attempts": attempt}
            # From now on, an epoch's time is that of a whole run: the first one is often slower.
            times["epoch"] = (result["processor_seconds"] - times["rest"]) / epochs
            off = abs(result["processor_seconds"] / budget - 1)
            if off <= TOLERANCE or fitting_epochs(budget, times["rest"], times["epoch"]) == epochs:
                break
        write(self.epochs, self.epoch_times)
        return result

    def probe_epochs(self, program: str, name: str, budget: float) -> dict[str, float]:
        """The processor time of an epoch and of all else, by two short runs: of one epoch, and of some."""
        one = self.train_peer(program, name, epochs=1, seed=0)
        more = max(
            3,
            fitting_epochs(budget / 4, one["processor_seconds"] - one["epoch_seconds"], one["epoch_seconds"]),
        )
        some = self.train_peer(program, name, epochs=more, seed=0)
        each = (some["processor_seconds"] - one["processor_seconds"]) / (more - 1)
        return {"epoch": each, "rest": some["processor_seconds"] - more * each}

    def train_peer(self, program: str, name: str, *, epochs: int, seed: int) -> dict[str, Any]:
        """Train and test a peer in its environment."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            divide(self.data / name, root / "data", seed)
            script = Path(__file__).with_name("accuracy_peers.py").resolve()
            command = [str(self.environment() / "bin" / "python"), str(script), program, str(root / "data")]
            command += ["--size", str(DATASETS[name].size), "--epochs", str(epochs), "--seed", str(seed)]
            command += ["--work", str(root), "--json", str(root / "result.json")]
            took = self.run(command, root, f"{program}-{name}-{epochs}-epochs-{seed}")
            result = json.loads((root / "result.json").read_text())
        images = sum(1 for path in (self.data / name / "test").rglob("*") if path.is_file())
        if result["tested"] != images:
            raise FailedError(f"tested {result['tested']} of {images} images")
        return {
            "accuracy": result["correct"] / images,
            "tested": images,
            "processor_seconds": took.processor,
            "wall_seconds": took.wall,
            "epochs": epochs,
            "epoch_seconds": result["epoch_seconds"],
            "versions": result["versions"],
        }

    def environment(self) -> Path:
        """The peers' virtual environment, built where it is not there."""
        folder = self.out / "peers"
        if not (folder / "complete").exists():
            print(f"installing {', '.join(PEER_PACKAGES)} into {folder}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            same = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
            install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *same]
            subprocess.run([*install, *PEER_PACKAGES], check=True)
            (folder / "complete").touch()
        return folder

    def run(self, command: Sequence[str], folder: Path, log: str) -> Command:
        """Run a command on the core, with one thread; its output goes to OUT/logs.

        Raises:
            FailedError: Its exit status is not 0.
        """
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        quiet = {
            "YOLO_OFFLINE": "true",
            "YOLO_CONFIG_DIR": str(folder),
            "MPLBACKEND": "agg",
            "FASTAI_HOME": str(folder),
        }
        path = self.out / "logs" / f"{log}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with path.open("wb") as output, bound_to(self.core):
            process = subprocess.Popen(
                command, env=os.environ | threads | quiet, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise FailedError(f"exit status {process.returncode}, see {path}: {last_line(path)}")
        return Command(usage.ru_utime + usage.ru_stime, time.perf_counter() - started)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def fitting_epochs(budget: float, rest: float, each: float) -> int:
    """How many epochs fit into a budget and its tolerance, at least one."""
    return max(1, int((budget * (1 + TOLERANCE) - rest) / each))


@contextlib.contextmanager
def bound_to(core: int) -> Iterator[None]:
    """Processes that are started in the block run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def divide(data: Path, target: Path, seed: int) -> None:
    """Link a set's images into train, val and test; val is 15% of each class of its training images."""
    generator = np.random.default_rng(seed)
    for folder in sorted((data / "train").iterdir()):
        files = sorted(folder.iterdir())
        order = generator.permutation(len(files))
        count = max(1, round(len(files) * VALIDATION_SHARE))
        for split, chosen in (("val", order[:count]), ("train", order[count:])):
            place = target / split / folder.name
            place.mkdir(parents=True)
            for index in chosen:
                (place / files[index].name).symlink_to(files[index].resolve())
    (target / "test").symlink_to((data / "test").resolve())


def last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95% interval of the mean over seeds (Student's t); None for one seed."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def table(
    cells: dict[str, dict[str, Any]], programs: Sequence[str], sets: Sequence[str], budget: float
) -> str:
    """Cells of a budget, in Markdown, and how `skipnets` compares with the best peer.

    Of a set, the seeds that all programs have which were measured on it: others would compare unlike things.
    """
    seeds = {name: shared_seeds(cells, programs, name, budget) for name in sets}
    rows = [f"| {budget:g} s of one core | " + " | ".join(sets) + " | mean |"]
    rows.append("|---|" + "---|" * (len(sets) + 1))
    means: dict[str, dict[str, float]] = {}
    used: list[dict[str, Any]] = []
    for program in programs:
        line, means[program] = [], {}
        for name in sets:
            keys = [f"{program}|{name}|{budget:g}|{seed}" for seed in seeds[name]]
            found = [cells[key] for key in keys if key in cells]
            if not found:
                line.append("–")
                continue
            used += found
            values = [100 * cell["accuracy"] for cell in found]
            means[program][name] = statistics.mean(values)
            spread = interval(values)
            seconds = statistics.mean(cell["processor_seconds"] for cell in found)
            line.append(
                f"{means[program][name]:.1f}"
                + (f" ± {spread:.1f}" if spread is not None else "")
                + (f" ({seconds:.0f} s)" if abs(seconds / budget - 1) > TOLERANCE else "")
            )
        complete = len(means[program]) == len(sets)
        line.append(f"{statistics.mean(means[program].values()):.1f}" if complete else "–")
        rows.append(f"| {program} | " + " | ".join(line) + " |")
    counts = sorted({len(seeds[name]) for name in sets if seeds[name]})
    text = f"Seeds of a set: {' or '.join(map(str, counts))}. {measured_with(used)}" if used else ""
    return "\n".join([*rows, "", *comparison(means, sets), "", text])


def shared_seeds(cells: Iterable[str], programs: Sequence[str], name: str, budget: float) -> list[str]:
    """The seeds of a set that all programs have which were measured on it."""
    found: dict[str, set[str]] = {}
    for key in cells:
        program, measured, seconds, seed = key.split("|")
        if (measured, seconds) == (name, f"{budget:g}") and program in programs:
            found.setdefault(program, set()).add(seed)
    return sorted(set.intersection(*found.values())) if found else []


def measured_with(cells: Sequence[dict[str, Any]]) -> str:
    """Processors and versions of cells, as a sentence."""
    versions = {"torch": {cell["torch"] for cell in cells}}
    for cell in cells:
        for name, version in cell.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    processors = sorted({cell["processor"] for cell in cells})
    listed = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    return f"{' and '.join(processors)}; {listed}."


def comparison(means: dict[str, dict[str, float]], sets: Sequence[str]) -> Iterator[str]:
    """How far `skipnets` is ahead of the best peer on each set that all have finished, and of their means."""
    ours = means.get("skipnets", {})
    peers = {program: found for program, found in means.items() if program != "skipnets"}
    shared = [
        name for name in sets if name in ours and peers and all(name in found for found in peers.values())
    ]
    if not shared:
        return
    leads = {name: ours[name] - max(found[name] for found in peers.values()) for name in shared}
    first = sum(lead > 0 for lead in leads.values())
    best = max(statistics.mean(found[name] for name in shared) for found in peers.values())
    lead = statistics.mean(ours[name] for name in shared) - best
    yield f"skipnets is first on {first} of {len(shared)} sets; mean: {lead:+.1f} points from the best peer."
    yield "Points ahead of the best peer: " + ", ".join(f"{name} {lead:+.1f}" for name, lead in leads.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that datasets.py wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for results, logs and the environment"
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=SETS)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=float, default=240, help="processor seconds of each command")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core to run on")
    parser.add_argument("--again", nargs="+", choices=PROGRAMS, default=(), help="programs to measure anew")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--results", type=Path, help="file of cells (default: OUT/results.json)")
    parser.add_argument("--docs", type=Path, help="a page to write the table into, between its marks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    bench = Bench(options.data, out, options.results or out / "results.json", options.core)
    for program in options.again:
        bench.forget(program)
    for key, cell in () if options.table else bench.cells.items():
        if int(key.split("|")[3]) in options.seeds and cell["processor"] != bench.machine["processor"]:
            parser.error(f"{key} was measured on {cell['processor']}: name other seeds")
    if options.docs is not None and BEGIN not in options.docs.read_text(encoding="utf-8"):
        parser.error(f"{options.docs} has no {BEGIN}")
    if not options.table:
        # A set and seed of all programs in a row: what else the machine does changes little in between.
        for seed in options.seeds:
            for name in options.datasets:
                for program in options.programs:
                    try:
                        cell = bench.cell(program, name, options.budget, seed)
                    except FailedError as error:
                        print(f"{program} on {name}, seed {seed}: failed: {error}", file=sys.stderr)
                        continue
                    print(
                        f"{program} on {name}, seed {seed}: {cell['accuracy']:.1%} in "
                        f"{cell['processor_seconds']:.0f} s of the processor ({cell['wall_seconds']:.0f} s)",
                        file=sys.stderr,
                        flush=True,
                    )
    text = table(bench.cells, options.programs, options.datasets, options.budget)
    print(text)
    if options.docs is not None:
        page = options.docs.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        with atomic_path(options.docs) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
