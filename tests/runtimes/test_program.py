"""Programs of torch.export, run operation by operation, against torch.export's own module."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.classifiers import make_classifier

from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.graph import simplify, trace, write_graph
from skipnets.models.factory import create_model
from skipnets.runtimes.archive import Archive
from skipnets.runtimes.program import _NEVER, CORE_OPERATIONS, OPERATIONS, _batch_norm, read_program

# Between them, every kind of layer that a network of the registry has.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "densenet": ("densenet_bc40_k12", {"block_config": (1, 1), "growth_rate": 4}),
    "group norm": ("resnet20", {"block_config": (1, 1), "width": 8, "norm": "group"}),
    "large densenet": ("densenet121", {"block_config": (2, 1, 1, 1), "growth_rate": 4}),
    "densenet without bottlenecks": ("densenet40_k12", {"block_config": (2, 1, 1), "growth_rate": 4}),
    "bottleneck resnet": ("resnet50", {"block_config": (1, 1, 1, 1), "width": 8}),
    "average and maximum": ("resnet20", {"block_config": (1, 1), "width": 8, "global_pool": "avgmax"}),
    "small resnet": ("resnet20", {"block_config": (1, 1, 1), "width": 8}),
}
QUICK = ("densenet", "group norm")


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]
)
def test_it_computes_what_torch_computes(network: str, tmp_path: Path) -> None:
    name, fields = NETWORKS[network]
    torch.manual_seed(0)
    plain = create_model(name, num_classes=3, **fields).eval()
    input_type = "uint8" if "densenet" in network else "float32"
    model = simplify(plain, Preprocessing(size=(40, 48)), input_type)  # type: ignore[arg-type]
    traced = trace(model, (40, 48), input_type)  # type: ignore[arg-type]
    write_graph(traced, "pt2", tmp_path / "m.pt2", "{}")
    with closing(Archive(tmp_path / "m.pt2")) as archive:
        program = read_program(archive)
    assert {str(step.operator).removeprefix("aten.") for step in program.steps} <= OPERATIONS
    images = torch.randint(256, (3, 3, 37, 51), dtype=torch.uint8)
    images = images if input_type == "uint8" else images / 255
    with torch.no_grad():
        for mine, theirs in zip(program(images), traced.module()(images), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_no_value_is_kept_after_its_last_use(tmp_path: Path) -> None:
    classifier = make_classifier("resnet20")
    model = simplify(classifier.model.eval(), classifier.preprocessing, "float32")
    write_graph(trace(model, (16, 20), "float32"), "pt2", tmp_path / "m.pt2", "{}")
    with closing(Archive(tmp_path / "m.pt2")) as archive:
        program = read_program(archive)
    dropped = [name for step in program.steps for name in step.last_used]
    computed = [result for step in program.steps for result in step.results]
    assert sorted([*dropped, *program.outputs]) == sorted(computed)


@pytest.mark.parametrize("name", sorted(OPERATIONS | CORE_OPERATIONS))
def test_every_operation_only_computes(name: str) -> None:
    """It returns new values, always the same; without tensors as arguments, what memory held might be one."""
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    assert not found._schema.is_mutable
    assert "backward" not in name
    if torch.Tag.nondeterministic_seeded in found.tags:
        assert (name, "train") in _NEVER
    takes_tensors = any("Tensor" in str(argument.type) for argument in found._schema.arguments)
    assert takes_tensors or name in ("arange.start_step", "full.default", "scalar_tensor.default")


SHORT, LONG = torch.ones(1), torch.ones(1, 64, 4, 4)
OUTSIDE = torch.tensor([[7]])
WRONG_SIZES: dict[str, tuple[Any, ...]] = {
    "_native_batch_norm_legit.no_stats": (LONG, SHORT, SHORT, True, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training.default": (LONG, SHORT, SHORT, SHORT, SHORT, 0.1, 1e-5),
    "as_strided.default": (LONG, [4096], [1]),
    "batch_norm.default": (LONG, SHORT, SHORT, SHORT, SHORT, False, 0.1, 1e-5, False),
    "col2im.default": (torch.ones(1, 4, 9), [100, 100], [2, 2], [1, 1], [0, 0], [1, 1]),
    "convolution.default": (LONG, torch.ones(8, 64, 1, 1), SHORT, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    "embedding.default": (torch.ones(2, 3), OUTSIDE),
    "gather.default": (torch.ones(2, 3), 0, OUTSIDE),
    "index.Tensor": (torch.ones(2, 3), [OUTSIDE]),
    "index_put.default": (torch.ones(2, 3), [OUTSIDE], torch.ones(1, 1, 3)),
    "index_select.default": (torch.ones(2, 3), 0, OUTSIDE[0]),
    "layer_norm.default": (LONG, [4, 4], SHORT, SHORT, 1e-5, False),
    "native_group_norm.default": (LONG, SHORT, SHORT, 1, 64, 16, 8, 1e-5),
    "native_layer_norm.default": (LONG, [4, 4], SHORT, SHORT, 1e-5),
    "scatter.src": (torch.ones(2, 3), 0, OUTSIDE, torch.ones(1, 1)),
    "scatter_add.default": (torch.ones(2, 3), 0, OUTSIDE, torch.ones(1, 1)),
    "slice_scatter.default": (torch.ones(2, 3), torch.ones(5, 3)),
}


@pytest.mark.parametrize("name", WRONG_SIZES)
def test_an_operation_is_refused_or_refuses_arguments_of_the_wrong_size(name: str) -> None:
    """What a file says must not make PyTorch read beyond a tensor."""
    packet, _, overload = name.partition(".")
    if name in OPERATIONS | CORE_OPERATIONS:
        with pytest.raises((RuntimeError, IndexError)):
            getattr(getattr(torch.ops.aten, packet), overload)(*WRONG_SIZES[name])


def test_a_batch_norm_with_too_few_statistics_is_an_error() -> None:
    arguments = WRONG_SIZES["_native_batch_norm_legit_no_training.default"]
    with pytest.raises(RuntimeError, match="should contain 64 elements"):
        _batch_norm(*arguments)
    statistics = [torch.rand(64) for _ in range(4)]
    expected = torch.ops.aten._native_batch_norm_legit_no_training(LONG, *statistics, 0.1, 1e-5)
    torch.testing.assert_close(_batch_norm(LONG, *statistics, 0.1, 1e-5), expected, rtol=0, atol=0)
