"""`skipnets summary`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FAMILIES = ("densenet", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json"])
def test_a_summary_is_printed_or_written(
    family: str, form: str, runs: dict[str, Path], tmp_path: Path, run
) -> None:
    words = ("summary", runs[family], "--depth", 2, "--format", form)
    printed = run(*words)
    assert printed.status == 0
    assert "3×3" in printed.out or '"kernel"' in printed.out
    assert run(*words, "--output", tmp_path / "new" / "s.txt").out == f"{tmp_path}/new/s.txt\n"
    written = (tmp_path / "new" / "s.txt").read_text(encoding="utf-8")
    assert [line.rstrip() for line in written.splitlines()] == [
        line.rstrip() for line in printed.out.splitlines()
    ]


def test_a_summary_follows_its_options(run) -> None:
    options = ("--model-options.growth-rate", 24, "--input-size", 64, "--format", "json")
    found = json.loads(run("summary", "densenet121", *options).out)
    assert found["input"] == [3, 64, 64]
    assert found["stages"][1]["shape"] == [48, 32, 32]
    result = run("summary", "resnet18", "--batch-size", "fit", "--memory", "16GiB")
    first = result.out.splitlines()[0]
    images = int(first.removeprefix("largest batch that trains in 16GiB: "))
    assert images > 100
    assert f"for {images} images" in result.out


def test_every_block_execution_has_its_largest_batch(run) -> None:
    fit = ("summary", "densenet_bc40_k12", "--batch-size", "fit", "--memory", "4GiB", "--execution")
    found = [run(*fit, execution) for execution in ("plain", "linear", "linear-recompute")]
    images = [int(result.out.splitlines()[0].rsplit(" ", 1)[1]) for result in found]
    assert images[0] < images[1] < images[2]
    assert "linear-recompute execution" in found[2].out


def test_none_is_none_in_every_spelling(run) -> None:
    def parameters(*norm: str) -> int:
        words = ("summary", "resnet20", *norm, "--json")
        return json.loads(run(*words).out)["totals"]["parameters"]

    without = parameters("--model-options.norm", "none")
    assert without == parameters("--model-options.norm", "null")
    assert without != parameters()
