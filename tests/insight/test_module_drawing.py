"""Drawings of own networks: every module, and every connection that skips one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.own_networks import Branching, TinyNet, se_densenet
from torch import Tensor

from skipnets.errors import UserError
from skipnets.insight import draw_diagram
from skipnets.insight.module_drawing import ModulesPanel, module_panels
from skipnets.models import create_model
from skipnets.models.module_calls import record_calls


def modules(network: object, image: tuple[int, ...], **options: int) -> ModulesPanel:
    first, panel = module_panels(record_calls(network, image), **options)  # type: ignore[arg-type]
    assert first.map_size == panel.map_size
    assert isinstance(panel, ModulesPanel)
    return panel


def test_modules_are_drawn_as_far_down_as_can_be_read() -> None:
    panel = modules(Branching(), (1, 8, 6))
    assert panel.rows == (
        ("stem", "3×3 Conv2d", "4×8×6"),
        ("relu", "ReLU", "4×8×6"),
        ("branch.0", "3×3 Conv2d", "4×8×6"),
        ("branch.1", "BatchNorm2d", "4×8×6"),
        ("relu", "ReLU", "4×8×6"),
        ("more", "1×1 Conv2d", "2×8×6"),
        ("head", "Linear", "3"),
    )
    assert [(arc.source, arc.target, arc.how) for arc in panel.arcs] == [
        (1, 4, "addition"),
        (4, 6, "concatenation"),
    ]
    deep = modules(create_model("resnet18", width=8), (3, 32, 32))
    assert len(deep.rows) <= 40
    assert (deep.rows[4][0], deep.rows[4][1].partition(":")[0]) == ("layer1.0", "BasicBlock")


def test_a_block_is_drawn_with_its_own_parts() -> None:
    deep = create_model("resnet18", width=8)
    number = [path for path, _, _ in modules(deep, (3, 32, 32)).rows].index("layer1.0") + 1
    panel = modules(deep, (3, 32, 32), block=number)
    paths = [path for path, _, _ in panel.rows]
    assert paths[0] == "conv1"
    (skip,) = [arc for arc in panel.arcs if arc.how == "addition"]
    assert skip.source == -1  # the shortcut: the block's input is added to what its last norm gives
    with pytest.raises(UserError, match=r"^block=9: must be from 1 to 7, the modules of Branching$"):
        modules(Branching(), (1, 8, 6), block=9)


class Sum(Branching):
    """Ends in an addition."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 4, H, W)."""
        x = self.stem(x)
        return x + self.branch(x)


def test_what_a_sum_makes_behind_the_last_module_reaches_a_row_of_its_own() -> None:
    panel = modules(Sum(), (1, 8, 6))
    assert panel.rows[-1] == ("output", "", "4×8×6")
    assert [(arc.source, arc.target, arc.how) for arc in panel.arcs] == [(0, 3, "addition")]


@pytest.mark.parametrize("network", [TinyNet(3), se_densenet(3, 1)])
def test_a_diagram_is_drawn(network: object, tmp_path: Path) -> None:
    path = draw_diagram(network, output=tmp_path / "own.svg", input_size=16)  # type: ignore[arg-type]
    assert path.read_text().startswith("<?xml")
