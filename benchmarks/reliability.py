"""Fail the disk at each write of a command, or kill it there, and look at what is left.

    python benchmarks/reliability.py disk-errors predict evaluate export train
    python benchmarks/reliability.py kills --first 111
    python benchmarks/reliability.py kills --random 200

A layer in C (`faults.c`, loaded before the C library) counts what a command writes below a folder and makes
one write fail with ENOSPC and all after it too, or kills the process in its place. Each try is a fork of one
process that has imported everything, in a folder of its own. After an error, a command must have ended with
one line and status 1 or 2, and what it was to write must be absent or whole. After a kill, the training is
resumed, or started again where it had not begun, and must come to the same weights and metrics, bit for bit,
as one that was let be.

Linux only; needs a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMANDS = ("predict", "evaluate", "export", "train")
# A training in which everything has a state: averaged weights, mixing, dropout, accumulated gradients.
TRAINING = [
    *("--model", "densenet_bc40_k12", "--model-options.block-config", "[1,1]"),
    *("--model-options.growth-rate", "4", "--model-options.proj-drop-rate", "0.1", "--epochs", "2"),
    *("--batch-size", "8", "--accumulate", "2", "--ema", "0.9", "--mixup", "0.2", "--workers", "0"),
    *("--augmentation", "flip", "--accelerator", "cpu", "--checkpoint-minutes", "1e-9"),
    *("--block-execution", "plain"),  # what auto measures may differ from run to run, and with it last bits
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("disk-errors", "kills"))
    parser.add_argument("commands", nargs="*", default=[], help=f"for disk-errors: {', '.join(COMMANDS)}")
    parser.add_argument("--every", type=int, default=1, help="try every n-th write only")
    parser.add_argument("--first", type=int, default=0, help="kills: at each of the first n writes")
    parser.add_argument("--random", type=int, default=0, help="kills: at so many random writes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if "FAULTS_LIBRARY" not in os.environ:
        start_again()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        place = Place(Path(folder).resolve())
        if arguments.what == "kills":
            result = {"kills": kills(place, arguments)}
        else:
            names = arguments.commands or COMMANDS
            result = {name: disk_errors(place, name, arguments.every) for name in names}
    print(json.dumps(result, indent=2))
    sys.exit(any(counts["wrong"] for counts in result.values()))


def start_again() -> None:
    """Run this script with the layer under it."""
    library = Path(tempfile.mkdtemp(prefix="faults-")) / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    environment = {
        **os.environ,
        "FAULTS_LIBRARY": str(library),
        "LD_PRELOAD": str(library),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def import_everything() -> None:
    """Import here what commands import when they run, so that a fork has it."""
    for name in (
        *("cli.train", "cli.predict", "cli.evaluate", "cli.export", "deploy.export", "training.trainer"),
        *("runtimes.torch", "runtimes.native", "runtimes.onnxruntime", "evaluation.confusion"),
    ):
        importlib.import_module(f"skipnets.{name}")
    importlib.import_module("matplotlib.pyplot")
    importlib.import_module("torch.utils.tensorboard")


class Place:
    """Images, a trained model, and a fresh folder for each try.

    Args:
        root: Where everything lies.
    """

    def __init__(self, root: Path) -> None:
        import numpy as np
        from PIL import Image

        import_everything()
        self.root = root
        self.layer = ctypes.CDLL(os.environ["FAULTS_LIBRARY"])
        self.layer.faults_seen.restype = ctypes.c_long
        rng = np.random.default_rng(0)
        for label in range(2):
            (root / "data" / str(label)).mkdir(parents=True)
            for number in range(16):
                pixels = (120 * label + rng.integers(0, 100, (8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / "data" / str(label) / f"{number}.png")
        (root / "whole").mkdir()
        status, text, self.training_writes = self.attempt(
            root / "whole", ["train", str(root / "data"), "--out", "run", *TRAINING], 0, 0
        )
        if status:
            raise SystemExit(f"the training that is let be failed:\n{text}")
        self.whole = outcome(root / "whole/run")
        self.model = root / "whole/run/model.safetensors"

    def fresh(self) -> Path:
        """An empty folder."""
        folder = self.root / "try"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def attempt(self, folder: Path, words: list[str], at: int, number: int) -> tuple[int, str, int]:
        """Run a command in a fork.

        Args:
            folder: Where it runs; writes below it are counted.
            words: The command.
            at: The write that fails; 0 for none.
            number: The error's; 0 kills.

        Returns:
            Its status (negative for a signal), what it said, and how much it wrote.
        """
        said, count = self.root / "said", self.root / "count"
        for path in (said, count):
            path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status = 99
            try:
                with said.open("wb", buffering=0) as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                    os.chdir(folder)
                    from skipnets.cli import main as run

                    self.layer.faults_set(str(folder).encode(), at, number)
                    try:
                        status = run(words)
                    finally:
                        seen = self.layer.faults_seen()
                        self.layer.faults_set(b"", 0, 0)
                    count.write_text(str(seen))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen = int(count.read_text()) if count.exists() else 0
        return status, said.read_text(errors="replace"), seen


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to, without what the clock or the place decides."""
    import csv

    import safetensors.numpy

    measured = ("seconds", "memory", "images_per_second")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    tensors = safetensors.numpy.load_file(run / "model.safetensors")
    weights = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
    return {
        "rows": [{key: row[key] for key in row if not key.endswith(measured)} for row in rows],
        "weights": weights,
        "accuracy": json.loads((run / "evaluation.json").read_text())["accuracy"],
    }


def disk_errors(place: Place, name: str, every: int) -> dict[str, Any]:
    """Let each write of a command fail.

    Args:
        place: Where.
        name: The command.
        every: Try every n-th write only.
    """
    data, model = str(place.root / "data"), str(place.model)
    commands: dict[str, tuple[list[str], Callable[[Path], str]]] = {
        "predict": (["predict", model, data, "--output", "out.csv"], whole_table),
        "evaluate": (["evaluate", model, data, "--split", "all", "--output", "out"], whole_evaluation),
        "export": (["export", model, "--output", "out.onnx"], whole_export),
        "train": (["train", data, "--out", "run", *TRAINING], lambda folder: resumable(place, folder)),
    }
    words, check = commands[name]
    status, text, writes = place.attempt(place.fresh(), words, 0, 0)
    if status:
        raise SystemExit(f"{name} failed without any fault:\n{text}")
    counts: Counter[str] = Counter()
    tries = range(1, writes + 1, every)
    for at in tries:
        folder = place.fresh()
        status, text, _ = place.attempt(folder, words, at, errno.ENOSPC)
        problem = wrong_ending(status, text) or check(folder)
        counts["ended with one line"] += status in (1, 2)
        counts["went on"] += status == 0
        if problem:
            counts["wrong"] += 1
            print(f"{name}, write {at} of {writes}: {problem}\n{text[-1500:]}", file=sys.stderr)
    return {"writes": writes, "tries": len(tries), **counts, "wrong": counts["wrong"]}


def wrong_ending(status: int, text: str) -> str:
    """What is wrong with how a command ended on a full disk; "" if nothing."""
    if "Traceback" in text:
        return "a traceback"
    lines = [line for line in text.splitlines() if line.startswith("skipnets: ")]
    if status not in (0, 1, 2):
        return f"status {status}"
    if status == 2 and len(lines) != 1:
        return f"{len(lines)} lines on the error"
    return ""


def leftovers(folder: Path) -> str:
    names = [path.name for path in folder.rglob("*") if re.search(r"\.tmp(\.|$)", path.name)]
    return f"temporaries are left: {names}" if names else ""


def whole_table(folder: Path) -> str:
    """Whether a table is absent or whole."""
    path = folder / "out.csv"
    if path.exists() and path.read_text().count("\n") != 33:
        return "half a table"
    return leftovers(folder)


def whole_evaluation(folder: Path) -> str:
    """Whether the files of an evaluation are absent or whole."""
    path = folder / "out/evaluation.json"
    if path.exists():
        json.loads(path.read_text())
    return leftovers(folder)


def whole_export(folder: Path) -> str:
    """Whether an export is absent or can be opened."""
    if (folder / "out.onnx").exists():
        from skipnets.classifier import load

        load(folder / "out.onnx")
    return leftovers(folder)


def resumable(place: Place, folder: Path) -> str:
    """Go on with a training once the disk has room again; the result must be the same."""
    run = folder / "run"
    if (run / "evaluation.json").exists():
        return "" if outcome(run) == place.whole else "a complete run of another result"
    begun = (run / "run.yaml").exists()
    words = ["--resume", "run"] if begun else [str(place.root / "data"), "--out", "run", *TRAINING]
    status, text, _ = place.attempt(folder, ["train", *words], 0, 0)
    if status:
        return f"it cannot be {'resumed' if begun else 'started again'}:\n{text[-1500:]}"
    if outcome(run) != place.whole:
        return f"another result after it was {'resumed' if begun else 'started again'}"
    return leftovers(folder)


def kills(place: Place, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill a training at writes, and go on."""
    writes = place.training_writes
    at_writes = list(range(1, min(arguments.first, writes) + 1))
    generator = random.Random(arguments.seed)
    at_writes += [generator.randint(1, writes) for _ in range(arguments.random)]
    words = ["train", str(place.root / "data"), "--out", "run", *TRAINING]
    counts: Counter[str] = Counter()
    for number, at in enumerate(at_writes):
        if number % 10 == 0:
            print(f"{number} of {len(at_writes)} kills, {counts['wrong']} wrong", file=sys.stderr, flush=True)
        folder = place.fresh()
        status, text, _ = place.attempt(folder, words, at, 0)
        begun = (folder / "run/run.yaml").exists()
        problem = "" if status == -signal.SIGKILL else f"status {status}: {text[-500:]}"
        problem = problem or resumable(place, folder)
        counts["resumed" if begun else "started again"] += 1
        if problem:
            counts["wrong"] += 1
            print(f"kill at write {at} of {writes}: {problem}", file=sys.stderr)
    return {"writes": writes, "tries": len(at_writes), **counts, "wrong": counts["wrong"]}


if __name__ == "__main__":
    main()
