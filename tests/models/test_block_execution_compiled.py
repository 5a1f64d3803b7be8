"""Linear execution compiled and exported: its operations stand as operators in one graph."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.helpers.block_policies import (
    SMALL,
    assert_same,
    copy_with,
    make_model,
    train_once,
)

from skipnets.models import create_model

pytestmark = pytest.mark.usefixtures("small_chunks")


class Seen:
    """A compiler's backend that notes the operators of this project in the graphs, and runs them."""

    def __init__(self):
        self.operators = []
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        self.operators += own_operators(graph.graph)
        return graph.forward


def own_operators(graph):
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return [name.split(".")[1] for name in names if name.startswith("skipnets.")]


@pytest.fixture
def _fresh_compiler():
    """The models share code, of which a process compiles only so many variants."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


STAGES = {
    "densenet_bc40_k12": ["dense_block", "transition", "dense_block", "transition", "dense_block"],
    "densenet121": ["stem", "dense_block", "transition", "dense_block"],
}


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("densenet121", "linear"),
        pytest.param("densenet121", "linear-recompute", marks=pytest.mark.slow),
        pytest.param("densenet_bc40_k12", "linear", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_sees_operators(name, policy):
    fields = SMALL if name == "densenet_bc40_k12" else {"block_config": (1, 1), "growth_rate": 4}
    model = make_model(name, **fields)
    linear, seen = copy_with(model, policy), Seen()
    x = torch.randn(3, 3, *[8 if fields is SMALL else 40] * 2, dtype=torch.float64)
    compiled = torch.compile(linear, backend=seen, fullgraph=True)
    assert_same(train_once(linear, x, compiled), train_once(model, x))
    assert (seen.operators, seen.graphs) == (STAGES[name], 1)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("batches", [(3,), pytest.param((3, 2), marks=pytest.mark.slow)])
def test_compiled_gradients_through_the_operators(batches):
    """Here the backward operators are part of a graph, too; for a second batch size, one of any size."""
    model = make_model(block_config=(1, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    for batch in batches:
        x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
        assert_same(train_once(linear, x, compiled), train_once(model, x))


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiler_notices_that_a_block_can_no_longer_run_as_one():
    model = make_model(block_config=(1, 1), growth_rate=4)
    linear, seen = copy_with(model, "linear"), Seen()
    compiled = torch.compile(linear, backend=seen, fullgraph=True)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    train_once(linear, x, compiled)
    assert seen.operators == ["dense_block", "transition", "dense_block"]
    linear.features.denseblock1.denselayer1.norm1.eval()
    model.load_state_dict(linear.state_dict())
    model.features.denseblock1.denselayer1.norm1.eval()
    seen.operators = []
    assert_same(train_once(linear, x, compiled), train_once(model, x))
    assert seen.operators == ["transition", "dense_block"]
    seen.operators = []
    linear.eval()
    torch.testing.assert_close(compiled(x), linear(x))
    assert seen.operators == []


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_under_autocast():
    model = create_model("densenet_bc40_k12", block_config=(2, 1), growth_rate=4, num_classes=5)
    linear, other = copy_with(model, "linear"), copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    results = []
    for trained, run in ((other, other), (linear, compiled)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(train_once(trained, x, run))
    assert_same(results[1], results[0], relative=3e-2, absolute=3e-2)
    assert results[1]["output"].dtype == torch.bfloat16


def test_an_exported_model_trains_through_the_operators():
    model = make_model(block_config=(2, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(linear, (x,))
    assert own_operators(program.graph) == ["dense_block", "transition", "dense_block"]
    exported = program.module()
    assert_same(train_once(exported, x), train_once(model, x))


def test_an_export_for_inference_has_no_operator_of_ours():
    linear = copy_with(make_model(**SMALL), "linear").eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(linear, (x,))
    assert own_operators(program.graph) == []
    torch.testing.assert_close(program.module()(x), linear(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler needs g++")
@pytest.mark.usefixtures("_fresh_compiler")
def test_inductor_compiles_what_is_around_the_operators():
    model = make_model(block_config=(2, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(linear, fullgraph=True)
    assert_same(train_once(linear, x, compiled), train_once(model, x))
