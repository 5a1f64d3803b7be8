"""Eval mode for a while: every module is as it was after, whatever happens meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skipnets.models.modes import copied, evaluating, sharing_tensors


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)))
    model[1][1].eval()  # one norm is frozen
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    # The norm of 2 channels refuses 3.
    with pytest.raises(RuntimeError, match="running_mean"), evaluating(model):
        model(torch.zeros(1, 3, 1, 1))
    assert [module.training for module in model.modules()] == modes
    assert modes.count(False) == 1


def test_overlapping_blocks_of_two_threads_end_with_the_last() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2))
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert all(module.training for module in model.modules())


def test_a_copy_that_shares_tensors_has_hooks_and_modes_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    copied = sharing_tensors(model)
    copied[0].register_forward_hook(lambda *_: pytest.fail("the copy's hook"))
    copied.eval()
    model(torch.zeros(1, 3, 2, 2))
    assert all(module.training for module in model.modules())
    for mine, theirs in zip(model.state_dict().values(), copied.state_dict().values(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


class _Keeping(nn.Linear):
    """Keeps what it computed, as networks do whose attention is shown later, beside a constant."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.constant = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3) → (N, 2)."""
        output = super().forward(x)
        self.last, self.steps = output * 2, {"all": [x, output]}
        return output


def test_a_model_that_keeps_some_of_its_last_call_is_copied() -> None:
    model = nn.Sequential(_Keeping(), nn.ReLU())
    model(torch.ones(1, 3)).sum().backward()
    kept = model[0].last
    twin = copied(model)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
    assert twin[0].last.data_ptr() != kept.data_ptr()
    assert twin[0].last.grad_fn is twin[0].steps["all"][1].grad_fn is None
    assert model[0].last is kept
    assert kept.grad_fn is not None
    shared = sharing_tensors(model)[0]
    assert shared.last is kept
    assert shared.steps["all"][1] is model[0].steps["all"][1]
    assert shared.steps is not model[0].steps
