"""Fuzz readers with atheris: `python -m tests.fuzz [--seconds 60] [READER ...]`, or `make fuzz`.

Each reader gets the same time, in a process of its own, and starts from the files in `seeds/READER`. A
finding is written to `findings/READER-…` and printed with its traceback; it becomes a test in
`test_readers.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = Path(__file__).with_name("seeds")
# Longer inputs only cost time: every branch of a reader can be reached in less.
MOST_BYTES = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    arguments = parser.parse_args()
    names = arguments.readers or sorted(path.name for path in SEEDS.iterdir())
    arguments.findings.mkdir(exist_ok=True)
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            options = [
                f"-max_total_time={arguments.seconds}",
                f"-max_len={MOST_BYTES}",
                "-timeout=20",
                "-rss_limit_mb=4096",
                "-print_final_stats=1",
                "-verbosity=0",
                f"-artifact_prefix={arguments.findings / name}-",
            ]
            result = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", FUZZ, name, *options, corpus, SEEDS / name],
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        runs = [line.split()[-1] for line in result.stderr.splitlines() if "number_of_executed_units" in line]
        found = "a finding" if result.returncode else "nothing found"
        sys.stdout.write(f"{name}: {runs[0] if runs else '?'} runs, {found}\n")
        sys.stdout.flush()
        if result.returncode:
            failed.append(name)
            sys.stderr.write(f"{result.stderr[-4000:]}\n")
    sys.exit(bool(failed))


FUZZ = """
import sys
import atheris
with atheris.instrument_imports(include=["skipnets"]):
    from tests.fuzz import readers
name = sys.argv.pop(1)
atheris.Setup(sys.argv, lambda data: readers.read(name, data))
atheris.Fuzz()
"""


if __name__ == "__main__":
    main()
