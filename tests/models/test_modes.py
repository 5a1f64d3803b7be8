"""Eval mode for a while: every module is as it was after, whatever happens meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skipnets.models.modes import evaluating


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
