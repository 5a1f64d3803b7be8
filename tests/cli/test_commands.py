"""What all commands have in common: help, version, missing extras."""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import resource
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import skipnets
from skipnets.cli import COMMANDS, main, make_app
from skipnets.cli.compare import compare
from skipnets.errors import missing_extra


def test_help_is_there_within_half_a_second() -> None:
    def seconds() -> float:
        """Of processor time, which other work on the machine does not lengthen."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "skipnets", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(seconds() for _ in range(5)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, skipnets.cli as c; c.main(['--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "numpy", "PIL", "pytorch_lightning", "matplotlib", "pydantic"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_shows_an_example(command: str, run) -> None:
    result = run(command, "--help")
    assert result.status == 0
    usage, *rest = result.out.splitlines()
    assert usage.startswith(f"Usage: skipnets {command}")
    assert any(line.lstrip().startswith(f"skipnets {command} ") for line in rest)


def test_the_version_is_the_package_s(run) -> None:
    assert run("--version").out.strip() == skipnets.__version__


def test_python_m_runs_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "skipnets", "models", "resnet18"], capture_output=True, text=True
    )
    assert (result.returncode, "resnet18" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("report", "jinja2", "report"),
        pytest.param("report", "captum", "report", marks=pytest.mark.slow),
        ("report", "torch", "report"),
        ("compare", "scipy", "report"),
        ("explain", "captum", "explain"),
        ("explain", "torch", "explain"),
        ("reuse", "torch", "train"),
        ("diagram", "torch", "train"),
        ("summary", "torch", "train"),
        ("calibrate", "torch", "train"),
    ],
)
def test_a_missing_extra_is_named(command: str, library: str, extra: str, runs: dict[str, Path]) -> None:
    words = {
        "compare": [runs["resnet"], runs["resnet"]],
        "explain": [runs["resnet"], "a.png", "--output", "a.png"],
        "reuse": [runs["resnet"], "--output", "a.png"],
        "diagram": ["resnet18", "--output", "a.svg"],
    }.get(command, [runs["resnet"]])
    script = (
        "import sys; sys.modules[sys.argv[1]] = None; "
        "from skipnets.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, library, command, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"skipnets: {missing_extra(extra)}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_shows_no_switch_without_purpose(
    command: str, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(command, "--help").out.splitlines()
    examples = lines[
        lines.index("For example:") + 1 : next(i for i, line in enumerate(lines) if line[:1] == "╭")
    ]
    assert all(line.startswith("    ") for line in examples[1:-1] if line and "://" not in line), examples
    assert not [line for line in lines if "--no-json" in line or "--empty-" in line]


@pytest.mark.parametrize("columns", [60, 120])
def test_paragraphs_of_help_are_as_wide_as_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run("compare", "--help").out
    described, _, rest = text.partition("For example:")
    described = described.partition("\n\n")[2]
    paragraphs = (inspect.getdoc(compare) or "").partition("\n\nFor example:")[0].split("\n\n")
    expected = [textwrap.fill(" ".join(each.split()), columns) for each in paragraphs]
    assert [line.rstrip() for line in described.strip().splitlines()] == "\n\n".join(expected).splitlines()
    assert "\n    skipnets compare runs/resnet runs/densenet\n" in rest


def test_standard_output_that_takes_nothing_is_one_line() -> None:
    words = [sys.executable, "-m", "skipnets", "models", "resnet18"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "skipnets: standard output: cannot be written (No space left on device)\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "skipnets", "models"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_process_ends_without_collecting_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch loaded, the interpreter would go on for more than a second after the last line."""
    registered: list[object] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr("sys.argv", ["skipnets", "--version"])
    assert main(["--version"]) == 0
    assert registered == []
    main()
    assert registered == [gc.freeze]


def test_commands_that_print_results_print_them_as_json_too() -> None:
    """The others write files or run on: the reference says so."""
    with_json = {
        name
        for name in COMMANDS
        if "json" in inspect.signature(make_app(name)[name].default_command).parameters
    }
    assert set(COMMANDS) - with_json == {"diagram", "explain", "report", "reuse", "serve", "train", "tune"}


def test_results_show_themselves_in_python_as_the_commands_print_them(runs: dict[str, Path], run) -> None:
    folder = runs["resnet"]
    summary, evaluation = skipnets.insight.summarize(folder), skipnets.evaluation.evaluate(folder)
    assert run("summary", folder).out == f"{summary}\n"
    assert run("evaluate", folder).out == f"{evaluation}\n"
    for shown, word in (
        (summary, "receptive field"),
        (evaluation, "balanced accuracy"),
        (skipnets.training.Run(folder), "model.safetensors"),
        (skipnets.load(folder), "runs in"),
    ):
        assert word in str(shown)
        assert word in shown._repr_html_()
