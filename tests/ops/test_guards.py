"""Each reason to leave a block to its modules, and that none is seen where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from skipnets.ops.guards import (
    computing_dtype,
    unsupported_activation,
    unsupported_convolution,
    unsupported_hooks,
    unsupported_input,
    unsupported_norm,
    unsupported_tracing,
)

IMAGES = torch.randn(2, 3, 4, 4)
WEIGHT = nn.Parameter(torch.randn(4, 3, 3, 3))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("x", "parameters", "reason"),
    [
        (IMAGES, [WEIGHT], None),
        (IMAGES.double(), [WEIGHT.double()], None),
        (IMAGES.as_subclass(Subclass), [WEIGHT], "a tensor subclass is in use"),
        (IMAGES, [WEIGHT, WEIGHT.double()], "parameters are not all of float32 or all of float64"),
        (IMAGES.half(), [WEIGHT.half()], "parameters are not all of float32 or all of float64"),
        (IMAGES.to("meta"), [WEIGHT], "input and parameters are on different devices"),
        (IMAGES.double(), [WEIGHT], "the input is torch.float64, not torch.float32"),
        (IMAGES[:1, :, :1, :1], [WEIGHT], "there is one value a channel: no batch statistics"),
    ],
)
def test_inputs(x: torch.Tensor, parameters: list[torch.Tensor], reason: str | None) -> None:
    assert unsupported_input(x, parameters) == reason


def test_inference_tensors() -> None:
    with torch.inference_mode():
        x = torch.randn(2, 3, 4, 4)
    assert unsupported_input(x, [WEIGHT]) == "the input is sparse or an inference tensor"


def test_autocast_decides_what_is_computed_in() -> None:
    cpu = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # What a convolution gives under autocast is the judge.
        assert torch.conv2d(IMAGES, WEIGHT).dtype == computing_dtype(cpu, torch.float32)
        assert torch.conv2d(IMAGES.double(), WEIGHT.double()).dtype == computing_dtype(cpu, torch.float64)
        assert unsupported_input(IMAGES.bfloat16(), [WEIGHT]) is None
        assert unsupported_input(IMAGES, [WEIGHT], casts=True) is None
        assert unsupported_input(IMAGES, [WEIGHT]) == "the input is torch.float32, not torch.bfloat16"
    assert computing_dtype(cpu, torch.float32) == torch.float32


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.BatchNorm2d(3), None),
        (nn.BatchNorm2d(3).eval(), "a norm is in eval mode"),
        (nn.BatchNorm2d(3, affine=False), "a norm has no scale and shift"),
        (nn.InstanceNorm2d(3), "its norm is an InstanceNorm2d, not a BatchNorm2d"),
        (nn.GroupNorm(1, 3), "its norm is a GroupNorm, not a BatchNorm2d"),
    ],
)
def test_norms(norm: nn.Module, reason: str | None) -> None:
    assert unsupported_norm(norm) == reason


def test_a_norm_without_shift_alone() -> None:
    norm = nn.BatchNorm2d(3)
    norm.bias = None  # type: ignore[assignment]  # as BatchNorm2d(3, bias=False) in recent versions of PyTorch
    assert unsupported_norm(norm) == "a norm has no scale and shift"


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3)])
def test_activations_behind_a_batch_norm(norm: nn.Module) -> None:
    assert unsupported_activation(nn.ReLU(), norm) is None
    for other in (nn.Identity(), nn.GELU()):
        assert unsupported_activation(other, norm) == "its activation is not a ReLU"


def test_a_norm_that_contains_the_activation_is_named() -> None:
    assert unsupported_activation(nn.Identity(), nn.GroupNorm(1, 3)) == (
        "its norm is a GroupNorm, not a BatchNorm2d"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"stride": 2}, "stride"),
        ({"padding": 0}, "padding"),
        ({"dilation": 2}, "dilation"),
        ({"groups": 2}, "groups"),
        ({"bias": True}, "bias"),
        ({"padding_mode": "reflect"}, "padding_mode"),
    ],
)
def test_convolutions(changes: dict[str, object], named: str | None) -> None:
    options = {"kernel_size": 3, "padding": 1, "bias": False} | changes
    reason = unsupported_convolution(nn.Conv2d(4, 4, **options), 3)
    assert reason is None if named is None else f"another {named} than" in str(reason)
    assert "kernel_size" in str(unsupported_convolution(nn.Conv2d(4, 4, 1, bias=False), 3))
    assert "not a Conv2d" in str(unsupported_convolution(nn.Linear(4, 4), 3))


@pytest.mark.parametrize(
    "register",
    [
        lambda module: module.register_forward_hook(print),
        lambda module: module.register_forward_pre_hook(print),
        lambda module: module.register_full_backward_hook(print),
        lambda module: module.register_full_backward_pre_hook(print),
        lambda module: nn.modules.module.register_module_forward_hook(print),
        lambda module: nn.modules.module.register_module_full_backward_hook(print),
    ],
)
def test_hooks(register: Callable[[nn.Module], torch.utils.hooks.RemovableHandle]) -> None:
    modules = [nn.ReLU(), nn.Identity()]
    assert unsupported_hooks(modules) is None
    handle = register(modules[1])
    assert "hooks are registered" in str(unsupported_hooks(modules))
    handle.remove()
    assert unsupported_hooks(modules) is None


def test_a_replaced_forward() -> None:
    module = nn.ReLU()
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert unsupported_hooks([module]) == "a module's forward is replaced"


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
def test_tracers_want_the_modules() -> None:
    seen: list[str | None] = []

    def asked(x: torch.Tensor) -> torch.Tensor:
        seen.append(unsupported_tracing(x))
        return x + 1

    asked(IMAGES)
    torch.jit.trace(asked, IMAGES, check_trace=False)
    torch.fx.symbolic_trace(asked)
    torch.func.vmap(asked)(IMAGES)
    with forward_ad.dual_level():
        asked(forward_ad.make_dual(IMAGES, IMAGES))
    assert seen == [
        None,
        "the model is being traced",
        "the model is being traced symbolically",
        "a function transform (torch.func) is active",
        "forward-mode differentiation is active",
    ]
