"""The commands that repeat the documentation's numbers still run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results.md"
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8"))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_of_equal_time_is_that_of_its_cells(tmp_path: Path) -> None:
    cells = str(ROOT / "docs" / "data" / "equal-time.json")
    shown = run("accuracy.py", str(tmp_path), "--out", str(tmp_path), "--results", cells, "--table")
    assert shown.returncode == 0, shown.stderr
    page = RESULTS.read_text("utf-8")
    assert page.split("<!-- equal time: begin -->\n")[1].split("<!-- equal time: end -->")[0] == shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_every_benchmark_explains_itself(script: str) -> None:
    shown = run(script, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (
            "inference.py",
            "--models densenet_bc100_k12 --batches 1 --seconds 1 --no-compile --no-int8 --no-others",
        ),
        ("training.py", "--models resnet20 --batch-size 4 --rounds 1"),
    ],
)
def test_the_benchmarks_of_the_front_page_run(script: str, arguments: str) -> None:
    """Whether their bars hold is not for a machine that does other things meanwhile."""
    shown = run(script, *arguments.split())
    assert "Traceback" not in shown.stderr, shown.stderr
    assert "skipnets" in shown.stdout or "linear" in shown.stdout
