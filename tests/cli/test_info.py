"""`skipnets info`."""

from __future__ import annotations

import json
from pathlib import Path

import skipnets


def test_info_shows_the_metadata_of_a_file(trained: Path, run) -> None:
    result = run("info", trained)
    for expected in (
        "densenet_bc40_k12",
        "bright side, dark",
        "growth_rate 4",
        "size",
        "mean",
        "recipe",
        "scores",
    ):
        assert expected in result.out
    about = json.loads(run("info", trained / "model.safetensors", "--json").out)
    assert about["classes"] == ["bright side", "dark"]
    assert about["parameters"] == sum(p.numel() for p in skipnets.load(trained).model.parameters())
