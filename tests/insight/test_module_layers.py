"""Layers that running a network tells, against those that its graph does."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers.own_networks import Branching, TinyNet

from skipnets.insight.layers import layers
from skipnets.insight.module_layers import module_layers
from skipnets.models import create_model, network_graph


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("densenet_bc40_k12", {"block_config": (2, 3)}),
        ("resnet50", {"block_config": (1, 2), "width": 16, "num_classes": 5}),
    ],
)
def test_a_network_that_is_run_has_the_layers_of_its_graph(name: str, fields: dict[str, Any]) -> None:
    model = create_model(name, **fields)
    size = (33, 40)
    expected = {layer.path: layer for layer in layers(network_graph(model.config), size)}
    found = {layer.path: layer for layer in module_layers(model, (3, *size))}
    common = expected.keys() & found.keys()
    # All but what is one layer to the graph and several modules, or the other way round.
    assert len(common) > 0.8 * len(expected)
    for path in common:
        one, other = found[path], expected[path]
        assert (one.output, one.parameters, one.macs) == (other.output, other.parameters, other.macs), path
        if one.kernel is not None and other.kernel is not None:
            assert (one.kernel, one.stride) == (other.kernel, other.stride), path
    for amount in ("parameters", "macs"):
        totals = [
            sum(getattr(layer, amount) for layer in table.values() if layer.depth == 1)
            for table in (found, expected)
        ]
        assert totals[0] == totals[1] > 0
    kept = [sum(row.kept for row in table.values() if row.depth == 1) for table in (found, expected)]
    assert kept[0] == pytest.approx(kept[1], rel=0.02)  # statistics of a batch are shared by its images


def test_what_belongs_to_no_layer_is_a_row() -> None:
    rows = module_layers(Branching(), (1, 8, 8))
    assert (rows[-1].path, rows[-1].kind) == ("(outside of layers)", "Branching")
    assert (rows[-1].parameters, rows[-1].macs) == (6 + 36, 36)
    assert all(row.path != "(outside of layers)" for row in rows[:-1])


def test_every_formula_gives_the_parameters() -> None:
    rows = {row.path: row for row in module_layers(TinyNet(3), (1, 8, 8))}
    assert rows["body.0"].formula == "4×1×3×3 + 4 = 40"
    assert rows["head"].formula == "3×8 + 3 = 27"
    for row in rows.values():
        if row.formula:
            arithmetic, result = row.formula.split(" = ")
            assert eval(arithmetic.replace("×", "*")) == int(result) == row.parameters
