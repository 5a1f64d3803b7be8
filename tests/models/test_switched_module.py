"""What switched modules know of their execution."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from skipnets.models import create_model, switched_module
from skipnets.models.execution_choice import Execution
from skipnets.models.switched_module import measure_network


@pytest.fixture
def model():
    made = create_model("densenet_bc40_k12", block_config=(1, 1), growth_rate=4)
    made.set_block_execution("auto")
    return made


def test_what_was_measured_is_told_to_every_switched_module(model, monkeypatch):
    asked = []

    def fastest(network, shape, **options):
        asked.append((network, shape, options))
        return Execution("linear-recompute", channels_last=False)

    monkeypatch.setattr(switched_module, "fastest_execution", fastest)
    measure_network(model, torch.zeros(2, 3, 8, 10))
    assert asked == [(model, (2, 3, 8, 10), {"channels_last": False})]
    block = model.features.denseblock1
    assert (block.measured, block.recompute) == ("linear-recompute", True)


def test_a_measurement_that_fails_is_told_once_and_leaves_the_layers(model, monkeypatch, caplog):
    def failing(*_, **__):
        raise RuntimeError("a layer of one's own\nfails on noise")

    monkeypatch.setattr(switched_module, "fastest_execution", failing)
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    reason = "measuring what is fastest has failed (a layer of one's own fails on noise)"
    assert caplog.messages == [f"warning: block_execution=auto: not applied: {reason}"]
    assert set(model.block_execution_report().values()) == {f"plain: {reason}"}
    model.set_block_execution("auto")
    assert model.measured is None


@pytest.mark.parametrize("case", ["eval mode", "no gradients", "another device", "global hooks"])
def test_nothing_is_measured_where_nothing_trains_on_the_cpu(case, model, monkeypatch):
    monkeypatch.setattr(switched_module, "fastest_execution", None)
    x = torch.zeros(2, 3, 8, 8, device="meta" if case == "another device" else "cpu")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(case != "no gradients"))
        if case == "global hooks":
            stack.callback(nn.modules.module.register_module_forward_hook(lambda *_: None).remove)
        measure_network(model.train(case != "eval mode"), x)
    assert model.features.denseblock1.measured is None
