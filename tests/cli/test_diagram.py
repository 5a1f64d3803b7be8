"""`skipnets diagram`."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FAMILIES = ("densenet", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_diagram_is_drawn(family: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    output = tmp_path / "new" / "d.svg"
    assert run("diagram", runs[family], "--output", output).status == 0
    assert ET.parse(output).getroot().tag.endswith("svg")
    assert run("diagram", *runs.values(), "--output", tmp_path / "both.png").status == 0
