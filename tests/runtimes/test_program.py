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
from skipnets.runtimes.program import OPERATIONS, _only_computes, read_program

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


@pytest.mark.parametrize(
    "name",
    [
        *("native_dropout.default", "rand.default", "randn.default", "randperm.default"),  # random
        *("_native_batch_norm_legit.default", "atan2.out", "relu_.default", "copy_.default"),  # write
        *("empty.memory_format", "max_pool2d_with_indices_backward.default"),
        *("save.default", "__class__", "_native_batch_norm_legit", "linear.default"),
    ],
)
def test_what_does_more_than_compute_is_none_of_the_core(name: str) -> None:
    assert not _only_computes(name)
    assert _only_computes("convolution.default")
