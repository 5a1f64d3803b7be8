"""`skipnets plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import skipnets

pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")


def test_every_step_is_timed(trained: Path, run) -> None:
    shown = run("plan", trained, "--rounds", 2, "--threads", 1)
    assert shown.status == 0
    assert "features.denseblock1.denselayer1.conv1" in shown.out
    assert "algorithm" in shown.out  # in the heading
    assert "Images of 16×16, 1 at once" in shown.out


def test_as_json_it_has_the_multiplications_of_the_network(trained: Path, run) -> None:
    report = json.loads(run("plan", trained, "--json", "--batch-size", 3, "--rounds", 2, "--threads", 1).out)
    assert set(report) == {"isa", "threads", "peak_macs", "steps"}
    assert report["threads"] == 1
    assert all(step["seconds"] >= 0 for step in report["steps"])
    # A transition pools before its convolution here, which is a quarter of the work; the rest is the same.
    model = skipnets.load(trained, runtime="torch").model
    macs = 0

    def count(module: torch.nn.Conv2d, given: object, maps: torch.Tensor) -> None:
        nonlocal macs
        macs += maps[0].numel() * module.weight[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "transition" not in name:
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, 16, 16))
    convolutions = [
        step for step in report["steps"] if "conv" in step["name"] and "transition" not in step["name"]
    ]
    assert sum(step["macs"] for step in convolutions) == pytest.approx(macs)


@pytest.mark.parametrize("option", ["--batch-size", "--rounds"])
def test_numbers_that_make_no_sense(option: str, trained: Path, run) -> None:
    for value in (0, 5000):
        result = run("plan", trained, option, value)
        assert (result.status, result.out) == (2, "")
        assert option.lstrip("-") in result.err
        assert str(value) in result.err
