"""The execution that trains a model fastest on a CPU: what is compared, kept, and left alone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from skipnets.models import create_model, execution_choice
from skipnets.models.accounting import kept_bytes
from skipnets.models.block_execution import set_block_execution
from skipnets.models.densenet import DenseNet
from skipnets.models.execution_choice import Execution, fastest_execution, operator_choices
from skipnets.models.family import network_graph
from skipnets.ops import convolution, dense_block
from skipnets.ops.choices import Choices

SMALL = {"block_config": (2, 2), "growth_rate": 4, "num_classes": 3}
SHAPE = (4, 3, 8, 8)


@pytest.fixture
def choosing(monkeypatch):
    """Choices of this test alone; the rates of executions, by name, replace the clock."""
    made = Choices(None)
    for module in (execution_choice, convolution, dense_block):
        monkeypatch.setattr(module, "CHOICES", made)
    monkeypatch.setattr(
        dense_block, "unsupported_natively", lambda *given, **options: "PyTorch's operators are tested here"
    )
    return made


@pytest.fixture
def fastest(choosing, monkeypatch):
    """Pretends that an execution is the fastest; what was compared is collected."""
    compared = []

    def pretend(name):
        def measure(problem, ways, rounds):
            for run in ways.values():
                run()
            if problem.startswith("1x1"):
                return next(iter(ways))
            compared.append(list(ways))
            seconds = {way: 1.0 if way == name else 2.0 for way in ways}
            choosing._file.put(f"{problem} seconds | {execution_choice_machine()}", seconds)
            choosing._file.put(f"{problem} | {execution_choice_machine()}", name)
            return name

        monkeypatch.setattr(choosing, "_measure", measure)
        return compared

    return pretend


def execution_choice_machine():
    from skipnets.ops.choices import machine

    return machine()


def make(name="densenet_bc40_k12", **fields):
    return create_model(name, **({**SMALL, **fields} if "dense" in name else fields)).train()


def test_executions_and_memory_formats_are_compared(fastest, caplog):
    compared = fastest("plain, contiguous")
    with caplog.at_level(logging.INFO, "skipnets"):
        assert fastest_execution(make(), SHAPE) == Execution("plain", channels_last=False)
    assert compared == [["plain, channels_last", "plain, contiguous", "linear, channels_last"]]
    (before, *lines) = caplog.messages
    assert before.startswith("measuring which block execution is fastest")
    assert lines == [
        "block execution: plain, contiguous is the fastest on this machine; a step of",
        "  plain, channels_last takes 2.00 of its time",
        "  linear, channels_last takes 2.00 of its time",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "skipnets"):
        fastest_execution(make(), SHAPE)
    assert caplog.messages == lines
    assert len(compared) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"channels_last": True}, ["plain, channels_last", "linear, channels_last"]),
        ({"channels_last": False}, ["plain, contiguous", "linear, contiguous"]),
        ({"policy": "plain"}, ["plain, channels_last", "plain, contiguous"]),
    ],
)
def test_what_is_given_is_not_compared(fastest, given, expected):
    compared = fastest(expected[-1])
    assert str(fastest_execution(make(), SHAPE, **given)) == expected[-1]
    assert compared == [expected]


def test_nothing_is_measured_where_nothing_is_left_to_choose(fastest):
    compared = fastest("plain, contiguous")
    assert fastest_execution(make(), SHAPE, policy="linear") == Execution("linear", channels_last=True)
    assert compared == []


def test_a_network_without_dense_blocks_has_its_memory_format_chosen(fastest):
    fastest("plain, contiguous")
    assert str(fastest_execution(make("resnet20"), SHAPE)) == "plain, contiguous"


@pytest.mark.parametrize(
    ("free", "expected"), [(10**9, ("plain", "linear")), (10**6, ("linear",)), (1, ("linear-recompute",))]
)
def test_only_what_fits_into_the_memory_is_compared(monkeypatch, free, expected):
    model = make()
    monkeypatch.setattr(execution_choice, "available_memory", lambda: free)
    plain, linear = (
        kept_bytes(network_graph(model.config), (8, 8), 64, policy) for policy in ("plain", "linear")
    )
    parameters = 5 * sum(parameter.nbytes for parameter in model.parameters())
    if free == 10**6:
        monkeypatch.setattr(execution_choice, "available_memory", lambda: parameters + plain + linear)
    assert execution_choice._fitting(model, (64, 3, 8, 8)) == expected


def test_memory_that_the_system_does_not_report_is_taken_to_suffice(monkeypatch):
    monkeypatch.setattr(execution_choice, "available_memory", lambda: None)
    assert execution_choice._fitting(make(), SHAPE) == ("plain", "linear")


def test_the_model_and_the_random_numbers_stay_as_they_are(fastest):
    fastest("linear, channels_last")
    model = make(drop_rate=0.5)
    before, types = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fastest_execution(model, SHAPE)
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [type(module) for module in model.modules()] == types
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("change", ["batch", "size", "width", "autocast"])
def test_other_problems_are_measured_anew(fastest, change):
    compared = fastest("plain, contiguous")
    fastest_execution(make(), SHAPE)
    shapes = {"batch": (5, 3, 8, 8), "size": (4, 3, 8, 9)}
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        fields = {"growth_rate": 5} if change == "width" else {}
        fastest_execution(make(**fields), shapes.get(change, SHAPE))
    assert len(compared) == 2


def test_slow_steps_are_measured_with_fewer_images(choosing, monkeypatch):
    sizes = []
    monkeypatch.setattr(execution_choice, "_train", lambda model, images: sizes.append(len(images)))
    clock = iter(float(tick) / 8 for tick in range(100))
    monkeypatch.setattr(execution_choice.time, "perf_counter", lambda: next(clock))
    probe = execution_choice._Probe(make(), (64, 3, 8, 8))
    probe.step(Execution("plain", channels_last=True))
    assert sizes == [2, 2, 8]  # An eighth of a second for two images, a half for eight.


def test_operators_of_an_execution_are_recorded(choosing):
    chosen = operator_choices(make(), SHAPE, Execution("linear", channels_last=True))
    assert set(chosen) >= {"1x1 convolution 12>16 8x8 forward", "1x1 convolution 12>16 8x8 backward"}
    assert operator_choices(make(), SHAPE, Execution("plain", channels_last=True)) == {}


# --- block_execution="auto" outside of `skipnets train` ---------------------------------------------


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet121"])
@pytest.mark.parametrize("winner", ["plain, contiguous", "linear, contiguous"])
def test_auto_measures_in_the_first_training_step(fastest, name, winner):
    compared = fastest(winner)
    model = make(name)
    size = 8 if name == "densenet_bc40_k12" else 64
    model.set_block_execution("auto")
    model.eval()(torch.zeros(2, 3, size, size))
    assert compared == []
    for _ in range(2):
        model.train()(torch.randn(4, 3, size, size)).sum().backward()
    assert len(compared) == 1
    policy = winner.partition(",")[0]
    expected = {"linear"} if policy == "linear" else {"plain: the fastest on this machine"}
    found = {text.removesuffix(": native kernels") for text in model.block_execution_report().values()}
    assert found == expected


def test_auto_equals_plain_in_number(fastest):
    fastest("linear, contiguous")
    model = make().double()
    other = copy.deepcopy(model)
    other.set_block_execution("auto")
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for each in (model, other):
        each(x).square().sum().backward()
    for own, expected in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    assert dict(other.named_buffers()).keys() == dict(model.named_buffers()).keys()
    for own, expected in zip(other.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet121", "resnet20"])
def test_auto_measures_for_feature_maps_too(fastest, name):
    compared = fastest("linear, contiguous")
    for out_indices in ((0, 1), (0,)):  # Other layers are left, which is another problem.
        net = create_model(name, block_config=(1, 1), features_only=True, out_indices=out_indices)
        net.model.set_block_execution("auto")
        for _ in range(2):
            sum(maps.sum() for maps in net(torch.randn(4, 3, 64, 64))).backward()
    assert len(compared) == 2
    assert net.model.measured == "linear"


@pytest.mark.parametrize("case", ["frozen", "pruned", "weight norm"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_auto_measures_what_plain_runs(fastest, case):
    fastest("plain, contiguous")
    model = make()
    if case == "frozen":
        model.requires_grad_(False)
    convolution = model.features.denseblock1.denselayer1.conv2
    if case == "pruned":
        nn.utils.prune.l1_unstructured(convolution, "weight", amount=0.5)
    if case == "weight norm":
        nn.utils.weight_norm(convolution)
    model.set_block_execution("auto")
    output = model(torch.randn(4, 3, 8, 8))
    assert model.measured == "plain"
    assert model.why_plain == "the fastest on this machine"
    if case != "frozen":
        output.sum().backward()
        trained = "weight_orig" if case == "pruned" else "weight_v"
        assert convolution.get_parameter(trained).grad is not None
    assert any(parameter.requires_grad for parameter in model.parameters()) is (case != "frozen")


def test_hooks_see_the_users_images_alone(fastest):
    fastest("plain, contiguous")
    model, seen, images = make(), [], torch.randn(3, 3, 8, 8, requires_grad=True)
    for module in model.modules():
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[0]))
        module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[0]))
        module.register_full_backward_hook(lambda _module, _inner, outer: seen.append(outer[0].shape[0]))
    model.set_block_execution("auto")
    model(images).sum().backward()
    calls = len(seen)
    assert model.measured == "plain"
    seen.clear()
    model(images).sum().backward()
    assert seen == [3] * calls


class _Modified(DenseNet):
    """A network of a user's own."""


def test_where_nothing_can_measure_the_report_says_so():
    net = nn.Sequential(make().features.denseblock1).train()
    set_block_execution(net, "auto")
    net(torch.randn(2, 8, 4, 4))
    reason = "plain: the classes DenseNet, ResNet and RDNet alone measure on a CPU what is fastest"
    assert net[0].policy == reason
    model = _Modified(make().config).train()
    model.set_block_execution("auto")
    model(torch.randn(4, 3, 8, 8))
    assert set(model.block_execution_report().values()) == {reason}
