from __future__ import annotations

import pytest
import torch

from skipnets.ops.autograd import differentiable_once, without_autocast


def test_autocast_is_kept_out_and_comes_back() -> None:
    a = torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with without_autocast(a.device):
            assert torch.equal(a @ a, torch.mm(a, a))
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_devices_without_autocast_are_let_alone() -> None:
    with without_autocast(torch.device("meta")):
        assert torch.is_grad_enabled()


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @differentiable_once
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_the_first_derivative_is_given_and_the_second_refused() -> None:
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    (grad,) = torch.autograd.grad(_Square.apply(x).sum(), x)
    assert grad.tolist() == [2.0, -6.0]
    with pytest.raises(RuntimeError, match=r'differentiated twice .*set_block_execution\("plain"\)'):
        torch.autograd.grad(_Square.apply(x).sum(), x, create_graph=True)
