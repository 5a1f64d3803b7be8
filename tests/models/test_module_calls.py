"""What running a network tells of it, against graphs, closed forms, and the data flow as it is written."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.own_networks import Attending, Branching, TinyNet
from torch import nn

from skipnets.errors import UserError
from skipnets.models.module_calls import INPUT, Call, connections, module_macs, record_calls


@pytest.fixture(scope="module")
def branching() -> list[Call]:
    return record_calls(Branching(), (1, 8, 6))


def test_calls_are_in_order_each_before_those_inside(branching: list[Call]) -> None:
    assert [(call.path, call.depth, call.parts) for call in branching] == [
        ("", 0, True),
        ("stem", 1, False),
        ("relu", 1, False),
        ("branch", 1, True),
        ("branch.0", 2, False),
        ("branch.1", 2, False),
        ("relu", 1, False),
        ("more", 1, False),
        ("head", 1, False),
    ]
    assert [(call.input, call.output) for call in branching[-2:]] == [((4, 8, 6), (2, 8, 6)), ((6,), (3,))]


def test_compute_parameters_and_memory_have_closed_forms(branching: list[Call]) -> None:
    area = 8 * 6
    macs = {"stem": 9 * 4 * area, "branch": 9 * 16 * area, "relu": 0, "more": 8 * area, "head": 18}
    assert {call.path: call.macs for call in branching if call.depth == 1} == macs
    assert branching[0].macs == sum(macs.values()) + 36  # the product with `scale`
    assert module_macs(Branching(), (1, 8, 6)) == branching[0].macs
    parameters = [40, 0, 152, 0, 10, 21]  # the ReLU's two calls have none
    assert [call.parameters for call in branching if call.depth == 1] == parameters
    assert branching[0].parameters == sum(parameters) + 6 + 36  # of what does not run, and of `scale`
    kept = {call.path: call.kept for call in branching if call.depth == 2}
    # The convolution keeps its input, a ReLU's output, which that has kept; the norm what the convolution
    # made, and for a batch of 2 its mean and deviation.
    assert kept == {"branch.0": 0, "branch.1": 4 * 4 * area + 4 * 4}


def test_attention_is_counted() -> None:
    pixels, width = 5 * 4, 8
    projections, products = 4 * pixels * width**2, 2 * pixels**2 * width
    calls = {call.path: call for call in record_calls(Attending(), (1, 5, 4))}
    assert calls["attention"].macs == projections + products
    assert calls["attention"].parameters == 4 * (width**2 + width)
    assert module_macs(Attending(), (1, 5, 4)) == calls[""].macs


def test_connections_are_those_of_the_forward_pass(branching: list[Call]) -> None:
    whole, *inner = branching
    outermost = [call for call in inner if call.depth == 1]  # stem, relu, branch, relu, more, head
    found = [(each.source, each.target, each.how) for each in connections(whole, outermost)]
    assert found == [
        (INPUT, 0, ""),
        (0, 1, ""),
        (1, 2, ""),
        (1, 3, "addition"),
        (2, 3, "addition"),
        (3, 4, ""),
        (3, 5, "concatenation"),
        (4, 5, "concatenation"),
        (5, 6, ""),
    ]


def test_an_identity_is_a_step_of_its_own() -> None:
    whole, *inner = record_calls(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity(), nn.Flatten()), (1, 2, 2))
    assert [(each.source, each.target) for each in connections(whole, inner)] == [
        (INPUT, 0),
        (0, 1),
        (1, 2),
        (2, 3),
    ]


def test_the_network_is_not_changed() -> None:
    network = TinyNet(3).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    record_calls(network, (1, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^model: TinyNet fails on images of shape \(1, 3, 8, 8\) \(.*chan"):
        record_calls(TinyNet(3), (3, 8, 8))


class Keeping(TinyNet):
    """Keeps the features of its last call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, K)."""
        features = self.body(x)
        self.last, self.earlier = features, [features * 2]
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_network_that_keeps_features_of_its_last_training_step() -> None:
    network = Keeping(3).train()
    network(torch.rand(2, 1, 8, 8)).sum().backward()
    last, plain = network.last, TinyNet(3)
    calls = record_calls(network, (1, 8, 8))
    assert [call.kept for call in calls[1:]] == [call.kept for call in record_calls(plain, (1, 8, 8))[1:]]
    assert network.last is last
