"""Linear execution under what PyTorch's autograd and hooks offer."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tests.helpers.block_policies import (
    POLICIES,
    SMALL,
    assert_ran,
    assert_same,
    copy_with,
    make_model,
    state,
    train_once,
)
from tests.helpers.networks import SMALL_RDNET
from torch.utils.checkpoint import checkpoint

from skipnets.models import create_model

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_two_forward_passes_before_two_backward_passes():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear-recompute")
    first, second = torch.randn(2, 3, 3, 8, 8, dtype=torch.float64)
    for trained in (model, linear):
        losses = [trained(first).square().sum(), trained(second).exp().sum()]
        for loss in losses:
            loss.backward()
    assert_same(state(linear), state(model))


def test_backward_twice_through_a_retained_graph():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for trained in (model, linear):
        loss = trained(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same(state(linear), state(model))


def test_threads_do_not_disturb_one_another():
    model = make_model(**SMALL)
    x = torch.randn(4, 3, 3, 8, 8, dtype=torch.float64)
    expected = [train_once(copy_with(model, "plain"), part) for part in x]
    models = [copy_with(model, "linear-recompute") for _ in x]
    results = {}

    def work(index):
        for _ in range(3):
            results[index] = train_once(copy.deepcopy(models[index]), x[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(x))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, wanted in enumerate(expected):
        assert_same(results[index], wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(reentrant):
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)

    def running(trained):
        return lambda given: checkpoint(trained, given, use_reentrant=reentrant)

    assert_same(train_once(linear, x, running(linear)), train_once(model, x, running(model)))


def test_functional_call_with_other_parameters():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    results = []
    for trained in (model, linear):
        tensors = {
            name: (tensor.detach() * 1.1).requires_grad_() for name, tensor in trained.named_parameters()
        }
        torch.func.functional_call(trained, tensors, (x,)).square().sum().backward()
        results.append({name: tensor.grad for name, tensor in tensors.items()})
    assert_same(results[1], results[0])
    assert_ran(linear, "linear")


def test_gradients_scale_with_the_loss():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for trained in (model, linear):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        scaler.scale(trained(x).square().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert_same(state(linear), state(model))


def test_an_overflowing_scale_is_noticed():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scaler.scale(model(torch.randn(3, 3, 8, 8)).square().sum() * 100).backward()
    before = state(model)["parameter features.conv0.weight"]
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.features.conv0.weight, before)
    assert scaler.get_scale() == 2.0**126


def test_gradients_of_intermediate_maps():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    results = []
    for trained in (model, linear):
        output, maps = trained.forward_intermediates(x)
        for intermediate in maps:
            intermediate.retain_grad()
        (output.sum() + sum(intermediate.square().sum() for intermediate in maps)).backward()
        shown = {f"map {index}": tensor.detach() for index, tensor in enumerate(maps)}
        shown |= {f"gradient of map {index}": tensor.grad for index, tensor in enumerate(maps)}
        results.append(shown | state(trained))
    assert_same(results[1], results[0])
    assert_ran(linear, "linear")


@pytest.mark.parametrize("path", ["features.denseblock2", "features.transition1"])
def test_hooks_on_blocks_and_transitions_see_what_plain_shows(path):
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    results = []
    for trained in (model, linear):
        seen, module = {}, trained.get_submodule(path)
        module.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.update(entering=inputs[0].detach())
        )
        module.register_forward_hook(lambda _m, _i, output, seen=seen: seen.update(leaving=output.detach()))
        module.register_full_backward_hook(
            lambda _, inner, outer, seen=seen: seen.update(inner=inner[0], outer=outer[0])
        )
        results.append(train_once(trained, x) | seen)
    assert_same(results[1], results[0])
    assert_ran(linear, "linear")


def test_a_hook_may_change_a_blocks_output():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for trained in (model, linear):
        trained.features.denseblock1.register_forward_hook(lambda module, inputs, output: output * 2 + 1)
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, "linear")


def test_a_changed_output_without_gradients_has_its_statistics_taken_anew():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    for trained in (model, linear):
        trained.features.denseblock1.register_forward_hook(lambda module, inputs, output: output.mul_(3))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), model(x))
    assert_same(state(linear), state(model))


def test_differentiating_twice_is_refused():
    model = copy_with(make_model(**SMALL), "linear")
    loss = model(torch.randn(3, 3, 8, 8, dtype=torch.float64)).sum()
    with pytest.raises(RuntimeError, match=r'differentiated twice .*set_block_execution\("plain"\)'):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("path", ["features.denseblock1", "features.transition1"])
def test_writing_to_what_a_stage_made_is_pytorchs_own_error(path, policy):
    model = copy_with(make_model(**SMALL), policy)
    kept = []
    model.get_submodule(path).register_forward_hook(lambda module, inputs, output: kept.append(output))
    loss = model(torch.randn(3, 3, 8, 8, dtype=torch.float64)).sum()
    with torch.no_grad():
        kept[0].add_(1)
    if path.endswith("transition1"):  # The next block has copied it: nothing is lost.
        loss.backward()
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_writing_to_a_parameter_before_the_backward_pass_is_pytorchs_own_error():
    model = copy_with(make_model(**SMALL), "linear")
    loss = model(torch.randn(3, 3, 8, 8, dtype=torch.float64)).sum()
    with torch.no_grad():
        model.features.denseblock1.denselayer1.norm1.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def replica(model):
    """What `nn.DataParallel` makes on each GPU: modules without parameters, whose tensors are attributes."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            setattr(copied, name, copies.get(child))
        for name, parameter in module._parameters.items():
            setattr(copied, name, None if parameter is None else parameter * 1)
    return copies[model]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("densenet121", SMALL),
        ("densenet40_k12", SMALL),
        ("resnet18", {"block_config": (2, 1), "width": 4}),
        ("rdnet_tiny", SMALL_RDNET),
    ],
)
def test_a_replica_without_parameters_of_its_own(name, fields):
    model = make_model(name, **fields)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    own = replica(linear)
    assert list(own.parameters()) == []
    for trained, run in ((model, model), (linear, own)):
        run(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())
    assert_same(state(linear), state(model))
    assert_ran(own, "linear")
