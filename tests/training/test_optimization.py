from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from skipnets.models.factory import create_model
from skipnets.training.optimization import (
    WARMUP_START,
    average_towards,
    follow_progress,
    layerwise_groups,
    make_optimizer,
    make_schedule,
    parameter_groups,
    with_bias_rate,
)

Name = Literal["constant", "milestones", "cosine", "linear"]


def rates(name: Name, *, warmup: float, steps: int = 5, epochs: int = 8) -> list[float]:
    model = nn.Linear(2, 2)
    groups = parameter_groups(model, 0.0, decay_norm_and_bias=True)
    optimizer = make_optimizer("sgd", groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    schedule = make_schedule(
        optimizer, name, steps_per_epoch=steps, epochs=epochs, warmup=warmup, milestones=(0.5, 0.75)
    )
    seen = []
    for _ in range(steps * epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup", [0.0, 1.4])
@pytest.mark.parametrize("name", ["constant", "milestones", "cosine", "linear"])
def test_schedules_equal_their_closed_forms(name: Name, warmup: float) -> None:
    rising, total = round(warmup * 5), 40

    def closed_form(step: int) -> float:
        if step < rising:
            return 0.1 * (WARMUP_START + (1 - WARMUP_START) * step / rising)
        if name == "cosine":
            return 0.05 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
        if name == "linear":
            return 0.1 * (1 - (step - rising) / (total - rising))
        return 0.1 * (0.1 ** ((step >= 20) + (step >= 30)) if name == "milestones" else 1)

    assert rates(name, warmup=warmup) == pytest.approx([closed_form(step) for step in range(total)])


@pytest.mark.parametrize("name", ["constant", "milestones", "cosine", "linear"])
def test_a_schedule_over_progress_is_the_one_over_steps(name: Name) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = follow_progress(
        optimizer, name, lambda step: step / 40, warmup=1.4 / 8, milestones=(0.5, 0.75)
    )
    seen = []
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates(name, warmup=1.4), abs=1e-9)


def test_a_warmup_longer_than_the_run_is_cut() -> None:
    assert rates("cosine", warmup=10, steps=1, epochs=3)[-1] == pytest.approx(0.1)


def test_rates_fall_from_the_head_to_the_stem() -> None:
    model = create_model("resnet18", width=8, num_classes=2)
    groups = layerwise_groups(model, 0.1, decay_norm_and_bias=False, lr=1.0, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 1 / 16, "conv1": 1 / 32}
    for path, value in expected.items():
        assert {rate[id(p)] for p in model.get_submodule(path).parameters()} == {value}
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}


def test_norms_and_biases_are_spared_from_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    model[3].weight.requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.5, decay_norm_and_bias=False)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape]
    assert len(spared["params"]) == 4
    (all_of_them,) = parameter_groups(model, 0.5, decay_norm_and_bias=True)
    assert (all_of_them["weight_decay"], len(all_of_them["params"])) == (0.5, 5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_do_what_torch_does_in_its_plain_form(name: Literal["sgd", "adamw"], fused: bool) -> None:
    def step(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> torch.Tensor:
        for factor in (1.0, -2.0, 0.5):
            weight.grad = weight.detach() * factor
            optimizer.step()
        return weight.detach()

    ours, plain = (torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [ours], "weight_decay": 0.01}]
    made = make_optimizer(name, groups, lr=0.1, momentum=0.8, nesterov=True, fused=fused)
    reference: torch.optim.Optimizer
    if name == "sgd":
        reference = torch.optim.SGD(
            [plain], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01, foreach=False
        )
    else:
        reference = torch.optim.AdamW([plain], lr=0.1, betas=(0.8, 0.999), weight_decay=0.01, foreach=False)
    assert torch.allclose(step(made, ours), step(reference, plain), rtol=1e-12)
    assert made.defaults["fused" if fused else "foreach"]


def test_the_average_moves_floats_and_copies_counters() -> None:
    average, counter = torch.tensor([1.0, 2.0]), torch.tensor(3)
    average_towards([average], [torch.tensor([2.0, 4.0])], 0.25)
    average_towards([counter], [torch.tensor(9)], 0.25)
    assert average.tolist() == [1.25, 2.5]
    assert counter.item() == 9


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_biases_get_a_multiple_of_their_rate(layer_decay: float) -> None:
    model = create_model("resnet8_w16", width=4)
    groups = parameter_groups(model, 0.1, decay_norm_and_bias=False)
    if layer_decay < 1:
        groups = layerwise_groups(model, 0.1, decay_norm_and_bias=False, lr=0.2, layer_decay=layer_decay)
    before = {id(p): group | {"params": p} for group in groups for p in group["params"]}
    divided = with_bias_rate(groups, model, lr=0.2, multiple=8)
    after = {id(p): group for group in divided for p in group["params"]}
    assert len(after) == len(before) == sum(len(group["params"]) for group in divided)
    for name, parameter in model.named_parameters():
        rate = before[id(parameter)].get("lr", 0.2) * (8 if name.endswith("bias") else 1)
        assert after[id(parameter)]["lr"] == pytest.approx(rate)
        assert after[id(parameter)]["weight_decay"] == before[id(parameter)]["weight_decay"]
    assert divided[0]["lr"] == 0.2
