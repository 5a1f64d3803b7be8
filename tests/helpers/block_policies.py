"""Networks under several policies of execution, for tests: one training pass, and what it must agree with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skipnets.models import create_model
from skipnets.models.graph import ExecutionPolicy

__all__ = [
    "POLICIES",
    "SMALL",
    "assert_ran",
    "assert_same",
    "copy_with",
    "make_model",
    "state",
    "stepped_aside",
    "train_once",
    "without_running_statistics",
]

POLICIES: tuple[ExecutionPolicy, ...] = ("linear", "linear-recompute")
# Options of a DenseNet with every kind of stage, fast.
SMALL: dict[str, Any] = {"block_config": (2, 3, 2), "growth_rate": 4}


def make_model(name: str = "densenet_bc40_k12", **fields: Any) -> Any:
    """A float64 model whose norms are not at their initial values."""
    model = create_model(name, **({"num_classes": 7} | fields)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    return model


def without_running_statistics(model: Any) -> Any:
    """The model itself, with norms that keep none."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def copy_with(model: Any, policy: str) -> Any:
    """A copy with another policy."""
    model = copy.deepcopy(model)
    model.set_block_execution(policy)
    return model


def train_once(model: Any, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """One forward and backward pass; everything that it shows or changes, by name.

    Args:
        model: What is trained.
        x: (N, C, H, W) images.
        run: Calls it in another way than by itself, such as compiled.
    """
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    output = (model if run is None else run)(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    assert x.grad is not None
    return {"output": output.detach(), "input gradient": x.grad, **state(model)}


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters, gradients and buffers, by name."""
    tensors = {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        tensors[f"parameter {name}"] = parameter.detach().clone()
        if parameter.grad is not None:
            tensors[f"gradient {name}"] = parameter.grad.clone()
    return tensors


def assert_same(
    own: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-9, absolute: float = 1e-12
) -> None:
    """Each tensor's largest error, against the largest value of that tensor."""
    assert own.keys() == expected.keys()
    for name, wanted in expected.items():
        assert own[name].dtype == wanted.dtype, name
        error, scale = (own[name] - wanted).abs().max(), wanted.abs().max()
        assert error <= relative * scale + absolute, f"{name}: off by {error:.3g} of {scale:.3g}"


def assert_ran(model: Any, policy: str) -> None:
    """Every stage ran, or would run, with the policy."""
    assert set(model.block_execution_report().values()) == {policy}


def stepped_aside(model: Any) -> dict[str, str]:
    """The reasons for which stages ran plainly, by path."""
    report = model.block_execution_report()
    return {path: text.removeprefix("plain: ") for path, text in report.items() if text.startswith("plain: ")}
