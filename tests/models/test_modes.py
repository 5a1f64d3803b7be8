"""Eval mode for a while: every module is as it was after, whatever happens meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skipnets.models.modes import evaluating, sharing_tensors


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
