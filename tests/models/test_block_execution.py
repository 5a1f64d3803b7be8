"""Linear execution must give the plain path's numbers, or step aside and say why."""

from __future__ import annotations

import copy
import gc
import io
import logging
import math
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.own_networks import se_densenet
from torch import nn
from torch.utils.checkpoint import checkpoint

from skipnets.errors import UserError
from skipnets.models import create_model, list_models
from skipnets.models.block_execution import MemoryEfficientDenseBlock, set_block_execution
from skipnets.models.graph import ExecutionPolicy
from skipnets.ops import chunks
from skipnets.training.benchmark import saved_bytes

POLICIES = ("linear", "linear-recompute")
CASES = {
    "bottleneck": ("densenet_bc40_k12", {}, (3, 3, 12, 12)),
    "no bottleneck": ("densenet40_k12", {}, (3, 3, 12, 12)),
    "imagenet stem": ("densenet121", {"block_config": (2, 3, 2, 2)}, (2, 3, 64, 64)),
    "odd maps": ("densenet_bc40_k12", {}, (2, 3, 13, 11)),
    "odd maps, imagenet stem": ("densenet121", {"block_config": (2, 3, 2, 2)}, (2, 3, 75, 93)),
    "batch of one": ("densenet_bc40_k12", {}, (1, 3, 12, 12)),
    "one channel": ("densenet_bc40_k12", {"in_chans": 1}, (3, 1, 12, 12)),
    "growth rate one": ("densenet_bc40_k12", {"growth_rate": 1}, (3, 3, 12, 12)),
    "one-layer blocks": ("densenet40_k12", {"block_config": (1, 1, 1)}, (3, 3, 12, 12)),
    "no compression": ("densenet_bc40_k12", {"compression": 1.0}, (3, 3, 12, 12)),
    "narrow bottleneck": ("densenet_bc40_k12", {"bottleneck": 1}, (3, 3, 12, 12)),
    "last map of one pixel": ("densenet_bc40_k12", {}, (4, 3, 4, 4)),
}
# The stem's maps are the largest that are left; without it these bars are not reached.
SAVED = {
    ("densenet121", "linear"): 0.22,
    ("densenet121", "linear-recompute"): 0.06,
    ("densenet_bc100_k12", "linear"): 0.17,
    ("densenet_bc100_k12", "linear-recompute"): 0.05,
}
SMALL = {"block_config": (2, 3, 2), "growth_rate": 4}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks even for small maps."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)


def make_model(name="densenet_bc40_k12", **fields):
    """A float64 model whose norms are not at their initial values."""
    model = create_model(name, num_classes=7, **fields).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    return model


def without_running_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def copy_with(model, policy):
    model = copy.deepcopy(model)
    model.set_block_execution(policy)
    return model


def train_once(model, x, run=None):
    """One forward and backward pass; everything that it shows or changes, by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    output = (model if run is None else run)(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return {"output": output.detach(), "input gradient": x.grad, **state(model)}


def state(model):
    """Copies of parameters, gradients and buffers."""
    tensors = {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        tensors[f"parameter {name}"] = parameter.detach().clone()
        if parameter.grad is not None:
            tensors[f"gradient {name}"] = parameter.grad.clone()
    return tensors


def assert_same(own, expected, relative=1e-9, absolute=1e-12):
    assert own.keys() == expected.keys()
    for name, wanted in expected.items():
        assert own[name].dtype == wanted.dtype, name
        error, scale = (own[name] - wanted).abs().max(), wanted.abs().max()
        assert error <= relative * scale + absolute, f"{name}: off by {error:.3g} of {scale:.3g}"


def assert_ran(model, policy):
    assert set(model.block_execution_report().values()) == {policy}


def stepped_aside(model):
    """The reasons for which blocks or transitions ran plainly."""
    report = model.block_execution_report()
    return {path: text.removeprefix("plain: ") for path, text in report.items() if text.startswith("plain: ")}


# --- The same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", CASES)
def test_equals_plain(case, policy):
    name, fields, size = CASES[case]
    model = make_model(name, **fields)
    x = torch.randn(size, dtype=torch.float64)
    linear = copy_with(model, policy)
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, policy)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", list_models("densenet*"))
def test_every_name_equals_plain(name, policy):
    model = make_model(name)
    # The last maps are 2×2: norms over the two values of 1×1 maps turn a rounding error into any other value.
    side = 68 if model.config.stem in ("imagenet", "deep") else 9
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    linear = copy_with(model, policy)
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_several_optimizer_steps_over_several_micro_batches(policy):
    model = make_model(**SMALL)
    linear = copy_with(model, policy)
    batches = torch.randn(6, 3, 3, 8, 8, dtype=torch.float64)
    for trained in (model, linear):
        optimizer = torch.optim.SGD(
            trained.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        for step in range(3):
            optimizer.zero_grad()
            for x in batches[2 * step : 2 * step + 2]:
                trained(x).square().mean().backward()
            optimizer.step()
    assert_same(state(linear), state(model))
    assert linear.features.denseblock1.denselayer1.norm1.num_batches_tracked == 6


def test_a_hundred_steps_end_at_the_same_weights():
    model = create_model("densenet_bc40_k12", num_classes=4, **SMALL).double()
    linear = copy_with(model, "linear")
    images = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, 4, (64,))
    for trained in (model, linear):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        for step in range(100):
            rows = torch.arange(8) + 8 * (step % 8)
            optimizer.zero_grad()
            F.cross_entropy(trained(images[rows]), labels[rows]).backward()
            optimizer.step()
    for (name, own), expected in zip(linear.named_parameters(), model.parameters(), strict=True):
        assert (own - expected).abs().max() <= 1e-6 * max(expected.abs().max(), 1), name
    assert_ran(linear, "linear")


@pytest.mark.slow
def test_float32_loss_curves_stay_within_plains_own_spread():
    """Two layouts of the plain path differ by rounding alone; linear execution differs no more from it."""
    images, labels = torch.randn(256, 3, 12, 12), torch.randint(0, 4, (256,))
    last = torch.channels_last

    def curve(seed, policy, layout):
        torch.manual_seed(seed)
        model = create_model("densenet_bc40_k12", num_classes=4, **SMALL).to(memory_format=layout)
        model.set_block_execution(policy)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(150):
            rows = torch.randint(0, len(images), (32,))
            loss = F.cross_entropy(model(images[rows].to(memory_format=layout)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    own, between_layouts = [], []
    for seed in range(5):
        contiguous, other = (curve(seed, "plain", layout) for layout in (torch.contiguous_format, last))
        between_layouts.append((contiguous - other).abs().mean())
        own.append((curve(seed, "linear", last) - other).abs().mean())
    assert max(between_layouts) > 0
    assert torch.stack(own).mean() <= 1.5 * torch.stack(between_layouts).mean()
    assert max(own) <= 2 * max(between_layouts)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-12, -1e-6, 2.0**-8 * 0.999])
@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet40_k12"])
def test_small_gammas(gamma, policy, name):
    model = make_model(name, **SMALL)
    with torch.no_grad():
        for module in model.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] = gamma
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(copy_with(model, policy), x), train_once(model, x))


def test_gammas_all_zero():
    model = make_model(**SMALL)
    with torch.no_grad():
        for module in model.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(copy_with(model, "linear"), x), train_once(model, x))


@pytest.mark.parametrize("changes", [{"momentum": None}, {"momentum": 0.7}, {"eps": 0.3}], ids=str)
def test_norms_with_other_settings(changes):
    model = make_model(**SMALL)
    for module in model.features.modules():
        if isinstance(module, nn.BatchNorm2d):
            vars(module).update(changes)
    linear = copy_with(model, "linear")
    for _ in range(3):
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
        assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, "linear")


def test_norms_without_running_statistics():
    model = without_running_statistics(make_model(**SMALL))
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, "linear")


def test_input_in_any_memory_format():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(4, 3, 9, 16, dtype=torch.float64)
    for given in (
        x.contiguous(memory_format=torch.channels_last),
        x[:, :, :, ::2],
        x.transpose(2, 3),
        x[:1].expand(4, -1, -1, -1),
    ):
        assert_same(train_once(linear, given), train_once(model, given))
    model.to(memory_format=torch.channels_last)
    linear.to(memory_format=torch.channels_last)
    assert_same(train_once(linear, x), train_once(model, x))


@pytest.mark.parametrize(
    "frozen",
    [
        "features.conv0",
        "features.denseblock1",
        "features.denseblock2",
        "features.transition1",
        "norm",
        "conv1",
        "weight",
    ],
)
def test_frozen_parameters(frozen):
    model = make_model(**SMALL)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    linear = copy_with(model, "linear")
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, "linear")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_forward_pass_in_train_mode_without_gradients(policy):
    model = make_model(**SMALL)
    linear = copy_with(model, policy)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), model(x))
    assert_same(state(linear), state(model))
    assert_ran(linear, policy)


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


# --- Lower precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet40_k12"])
def test_autocast_is_no_less_exact_than_plain(name, policy):
    """Eight bits leave much noise in a gradient, so its errors are summed over tensors and seeds."""
    errors = dict.fromkeys(("plain", policy), 0.0)
    for seed in range(4):
        torch.manual_seed(seed)
        exact = create_model(name, num_classes=7, **SMALL).double()
        x, labels = torch.randn(16, 3, 10, 10), torch.randint(0, 7, (16,))

        def gradients(model, x, labels=labels):
            F.cross_entropy(model(x).double(), labels).backward()
            return [parameter.grad.double() for parameter in model.parameters()]

        expected = gradients(copy.deepcopy(exact), x.double())
        for used in errors:
            model = copy_with(exact, used).float()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                own = gradients(model, x)
            assert_ran(model, used)
            errors[used] += sum(
                ((a - b).norm() / b.norm()).item() for a, b in zip(own, expected, strict=True)
            )
    assert errors[policy] <= 1.15 * errors["plain"]


def test_autocast_around_the_forward_pass_alone():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 3, 8, 8))
    output.float().sum().backward()
    assert_ran(model, "linear")
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


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


# --- Several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_distributed_processes(tmp_path):
    script = Path(__file__).with_name("distributed_step.py")
    command = [sys.executable, str(script), str(tmp_path / "store")]
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0, output


# --- Clear errors ---------------------------------------------------------------------------------


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


def test_one_value_a_channel_is_plains_own_error():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, 3, 4, 4))


def test_an_unknown_policy_is_an_error_naming_the_known():
    with pytest.raises(UserError, match=r'"liner"; did you mean linear.*plain, linear, linear-recompute'):
        create_model("densenet_bc40_k12").set_block_execution("liner")


# --- Seen from outside the block ------------------------------------------------------------------


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


def test_copies_pickles_and_switching_back():
    model = make_model(**SMALL)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    linear = copy_with(model, "linear-recompute")
    assert list(linear.state_dict()) == list(model.state_dict())
    stream = io.BytesIO(pickle.dumps(linear))
    unpickled = pickle.load(stream)
    expected = train_once(copy.deepcopy(model), x)
    for variant in (
        copy.deepcopy(linear),
        unpickled,
        copy_with(linear, "linear"),
        copy_with(linear, "plain"),
    ):
        assert_same(train_once(variant, x), expected)
    assert_ran(unpickled, "linear-recompute")
    assert_ran(copy_with(linear, "plain"), "plain")
    assert not any(
        isinstance(module, MemoryEfficientDenseBlock) for module in copy_with(linear, "plain").modules()
    )


# --- Stepping aside -------------------------------------------------------------------------------


def _parametrize(model):
    nn.utils.parametrizations.weight_norm(model.features.denseblock1.denselayer1.conv1)


def _wrap(model):
    layer = model.features.denseblock1.denselayer1
    layer.conv1 = nn.Sequential(layer.conv1)


def _extend(model):
    model.features.denseblock1.denselayer1.add_module("extra", nn.Identity())


def _replace_norm(model):
    model.features.denseblock1.denselayer1.norm1 = nn.InstanceNorm2d(8, affine=True).double()


def _replace_activation(model):
    model.features.denseblock1.denselayer2.relu2 = nn.LeakyReLU()


def _freeze_norm(model):
    model.features.denseblock1.denselayer2.norm2.eval()


def _replace_forward(model):
    convolution = model.features.denseblock1.denselayer1.conv2
    convolution.forward = lambda x, plain=convolution.forward: plain(x) * 2


def _dilate(model):
    convolution = model.features.denseblock1.denselayer1.conv2
    convolution.dilation, convolution.padding = (2, 2), (2, 2)


def _without_affine(model):
    model.features.denseblock1.denselayer2.norm1 = nn.BatchNorm2d(12, affine=False).double()


def _synchronize(model):
    model.features.denseblock1.denselayer1.norm1 = nn.SyncBatchNorm(8).double()


ASIDE = {
    "parametrized": (_parametrize, "denselayer1: its convolution is a ParametrizedConv2d, not a Conv2d"),
    "wrapped": (_wrap, "denselayer1: its convolution is a Sequential, not a Conv2d"),
    "extended": (_extend, "denselayer1: it has other modules than"),
    "other norm": (_replace_norm, "denselayer1: its norm is an InstanceNorm2d, not a BatchNorm2d"),
    "other activation": (_replace_activation, "denselayer2: its activation is not a ReLU"),
    "norm in eval mode": (_freeze_norm, "denselayer2: a norm is in eval mode"),
    "replaced forward": (_replace_forward, "denselayer1: a module's forward is replaced"),
    "dilated": (_dilate, "denselayer1: a convolution has another padding than (1, 1)"),
    "no scale and shift": (_without_affine, "denselayer2: a norm has no scale and shift"),
    "forward hook": (
        lambda model: model.features.denseblock1.denselayer1.norm2.register_forward_hook(lambda *_: None),
        "denselayer1: hooks are registered on modules inside",
    ),
    "forward pre-hook": (
        lambda model: model.features.denseblock1.denselayer1.register_forward_pre_hook(lambda *_: None),
        "denselayer1: hooks are registered on modules inside",
    ),
    "backward hook": (
        lambda model: model.features.denseblock1.denselayer1.conv1.register_full_backward_hook(
            lambda *_: None
        ),
        "denselayer1: hooks are registered on modules inside",
    ),
}


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("case", ASIDE)
def test_a_layer_steps_aside_alone_with_the_reason(case, has_run):
    change, reason = ASIDE[case]
    layer, _, reason = reason.partition(": ")
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    if has_run:
        assert_same(train_once(linear, x), train_once(model, x))
        assert_ran(linear, "linear")
    change(model)
    torch.manual_seed(0)
    change(linear)
    # How it ran last, or would run now.
    assert (f"features.denseblock1.{layer}" in linear.block_execution_report()) is not has_run
    assert_same(train_once(linear, x), train_once(model, x))
    report = linear.block_execution_report()
    assert copy.deepcopy(linear).block_execution_report() == report
    assert report.pop(f"features.denseblock1.{layer}").startswith(f"plain: {reason}")
    assert set(report.values()) == {"linear"}


@pytest.mark.parametrize("apart", [(1,), (3,), (2, 3), (1, 5), (1, 3, 5)])
def test_layers_between_those_that_step_aside_keep_running_as_operations(apart):
    """With gates behind some layers, as a squeeze-and-excite block is, and one of another width."""
    model = make_model("densenet_bc40_k12", block_config=(5, 1), growth_rate=4)
    for number in apart:
        layer = model.features.denseblock1.get_submodule(f"denselayer{number}")
        layer.conv2 = nn.Sequential(layer.conv2, nn.Conv2d(4, 4, 1).double(), nn.Sigmoid())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for policy in ("linear", "linear-recompute"):
        changed = copy_with(model, policy)
        assert_same(train_once(changed, x), train_once(copy_with(model, "plain"), x))
        names = [f"features.denseblock1.denselayer{number}" for number in apart]
        assert stepped_aside(changed) == dict.fromkeys(names, "its convolution is a Sequential, not a Conv2d")
        assert changed.block_execution_report()["features.denseblock1"] == policy


def test_a_layer_that_steps_aside_costs_no_more_than_its_own_features():
    """What is kept for the backward pass: half of a plain block's, where one of twelve layers is gated."""
    kept = {}
    model = make_model("densenet_bc40_k12", block_config=(12,), growth_rate=4)
    layer = model.features.denseblock1.denselayer6
    layer.conv2 = nn.Sequential(layer.conv2, nn.Sigmoid())
    for policy in ("plain", "linear"):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (
                sizes.update({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()}),
                tensor,
            )[1],
            lambda tensor: tensor,
        ):
            output = copy_with(model, policy)(torch.randn(2, 3, 8, 8, dtype=torch.float64))
        kept[policy] = sum(sizes.values())
        del output
    assert kept["linear"] < 0.6 * kept["plain"]


def test_a_block_that_has_not_changed_is_not_checked_again(monkeypatch):
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    checked = []
    check = MemoryEfficientDenseBlock._unsupported_layers
    monkeypatch.setattr(
        MemoryEfficientDenseBlock, "_unsupported_layers", lambda block: checked.append(block) or check(block)
    )
    linear = copy_with(make_model(**SMALL), "linear")
    train_once(linear, x)
    blocks = len(checked)
    assert blocks > 0
    train_once(linear.eval().train(), x)
    assert len(checked) == blocks
    train_once(copy.deepcopy(linear), x)
    assert len(checked) == 2 * blocks


def test_a_block_that_was_checked_can_be_freed():
    linear = copy_with(make_model(**SMALL), "linear")
    train_once(linear, torch.randn(3, 3, 8, 8, dtype=torch.float64))
    block = weakref.ref(linear.features.denseblock1)
    del linear
    gc.collect()
    assert block() is None


def test_steps_aside_for_a_synchronized_norm():
    model = make_model(**SMALL)
    _synchronize(model)
    model.set_block_execution("linear")
    assert stepped_aside(model) == {
        "features.denseblock1.denselayer1": "its norm is a SyncBatchNorm, not a BatchNorm2d"
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"proj_drop_rate": 0.2}, "dropout"),
        ({"drop_path_rate": 0.5}, "stochastic depth"),
        ({"norm": "group"}, "its norm is a GroupNorm, not a BatchNorm2d"),
        ({"norm": None}, "its norm is an Identity, not a BatchNorm2d"),
    ],
    ids=str,
)
def test_steps_aside_for_what_a_config_can_ask(fields, reason):
    model = create_model("densenet_bc40_k12", **SMALL, **fields).double()
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    own = train_once(linear, x)
    torch.manual_seed(1)
    assert_same(own, train_once(model, x))
    assert stepped_aside(linear)["features.denseblock3"].endswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda transition: setattr(transition, "pool", nn.MaxPool2d(2)),
            "its pooling is not the average of 2×2",
        ),
        (lambda transition: setattr(transition, "relu", nn.GELU()), "its activation is not a ReLU"),
        (
            lambda transition: transition.append(nn.Identity()),
            "it has other modules than norm, relu, conv and pool",
        ),
        (lambda transition: transition.norm.eval(), "a norm is in eval mode"),
        (lambda transition: transition.conv.register_forward_hook(lambda *_: None), "hooks are registered"),
    ],
)
def test_a_transition_steps_aside_alone(change, reason):
    model = make_model(**SMALL)
    change(model.features.transition1)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    aside = stepped_aside(linear)
    assert list(aside) == ["features.transition1"]
    assert aside["features.transition1"].startswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda features: setattr(features, "pool0", nn.AvgPool2d(3, 2, 1)),
            "its pooling is not the maximum",
        ),
        (lambda features: setattr(features, "relu0", nn.GELU()), "its activation is not a ReLU"),
        (lambda features: features.norm0.eval(), "a norm is in eval mode"),
        (lambda features: features.relu0.register_forward_hook(lambda *_: None), "hooks are registered"),
        (
            lambda features: setattr(features.conv0, "stride", (1, 1)),
            "a convolution has another stride than (2, 2)",
        ),
    ],
)
def test_a_stem_steps_aside_alone(change, reason):
    model = make_model("densenet121", **SMALL)
    linear = copy_with(model, "linear")
    change(model.features)
    change(linear.features)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    aside = stepped_aside(linear)
    assert list(aside) == ["stem"]
    assert aside["stem"].startswith(reason)


def test_a_stem_under_autocast():
    linear = copy_with(create_model("densenet121", **SMALL), "linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = linear(torch.randn(4, 3, 40, 40))
    output.float().sum().backward()
    assert_ran(linear, "linear")
    assert linear.features.conv0.weight.grad.dtype == torch.float32


def test_steps_aside_in_eval_mode():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear").eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(linear(x), model.eval()(x))
    assert set(stepped_aside(linear).values()) == {"eval mode"}


def test_steps_aside_for_global_hooks():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    try:
        linear(torch.randn(3, 3, 8, 8, dtype=torch.float64))
    finally:
        handle.remove()
    assert set(stepped_aside(linear).values()) == {"global module hooks are registered"}
    assert calls.count(nn.ReLU) == 2 * 7 + 2 + 1


def test_steps_aside_for_types_and_subclasses():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear").bfloat16()
    model(torch.randn(3, 3, 8, 8, dtype=torch.bfloat16))
    assert set(stepped_aside(model).values()) == {"parameters are not all of float32 or all of float64"}

    class Marked(torch.Tensor):
        pass

    model = copy_with(make_model(**SMALL), "linear")
    model(torch.randn(3, 3, 8, 8, dtype=torch.float64).as_subclass(Marked))
    assert set(stepped_aside(model).values()) == {"a tensor subclass is in use"}


def test_steps_aside_in_inference_mode():
    model = make_model(**SMALL)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(linear(x), model(x))
    assert set(stepped_aside(linear).values()) == {"the input is sparse or an inference tensor"}


def test_steps_aside_for_function_transforms():
    model = without_running_statistics(make_model(**SMALL))
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    gradients = [torch.func.grad(lambda given, run=run: run(given).sum())(x) for run in (linear, model)]
    torch.testing.assert_close(*gradients)
    assert set(stepped_aside(linear).values()) == {"a function transform (torch.func) is active"}


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning"
)  # PyTorch's own use of it
def test_steps_aside_for_forward_mode():
    model = without_running_statistics(make_model(**SMALL))
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    tangents = []
    for run in (linear, model):
        with torch.autograd.forward_ad.dual_level():
            output = run(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            tangents.append(torch.autograd.forward_ad.unpack_dual(output).tangent)
    torch.testing.assert_close(*tangents)


def test_steps_aside_for_tracers():
    linear = copy_with(make_model(**SMALL), "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = copy_with(linear, "plain").eval()(x)
    traced = torch.fx.symbolic_trace(copy.deepcopy(linear)).eval()
    assert "features_denseblock1_denselayer1_conv1" in {node.name for node in traced.graph.nodes}
    torch.testing.assert_close(traced(x), expected)


# --- Compiled and exported ------------------------------------------------------------------------


class Seen:
    """A compiler's backend that notes the operators of this project in the graphs, and runs them."""

    def __init__(self):
        self.operators = []
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        self.operators += own_operators(graph.graph)
        return graph.forward


def own_operators(graph):
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return [name.split(".")[1] for name in names if name.startswith("skipnets.")]


@pytest.fixture
def _fresh_compiler():
    """The models share code, of which a process compiles only so many variants."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


STAGES = {
    "densenet_bc40_k12": ["dense_block", "transition", "dense_block", "transition", "dense_block"],
    "densenet121": ["stem", "dense_block", "transition", "dense_block"],
}


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("densenet121", "linear"),
        pytest.param("densenet121", "linear-recompute", marks=pytest.mark.slow),
        pytest.param("densenet_bc40_k12", "linear", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_sees_operators(name, policy):
    fields = SMALL if name == "densenet_bc40_k12" else {"block_config": (1, 1), "growth_rate": 4}
    model = make_model(name, **fields)
    linear, seen = copy_with(model, policy), Seen()
    x = torch.randn(3, 3, *[8 if fields is SMALL else 40] * 2, dtype=torch.float64)
    compiled = torch.compile(linear, backend=seen, fullgraph=True)
    assert_same(train_once(linear, x, compiled), train_once(model, x))
    assert (seen.operators, seen.graphs) == (STAGES[name], 1)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("batches", [(3,), pytest.param((3, 2), marks=pytest.mark.slow)])
def test_compiled_gradients_through_the_operators(batches):
    """Here the backward operators are part of a graph, too; for a second batch size, one of any size."""
    model = make_model(block_config=(1, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    for batch in batches:
        x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
        assert_same(train_once(linear, x, compiled), train_once(model, x))


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiler_notices_that_a_block_can_no_longer_run_as_one():
    model = make_model(block_config=(1, 1), growth_rate=4)
    linear, seen = copy_with(model, "linear"), Seen()
    compiled = torch.compile(linear, backend=seen, fullgraph=True)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    train_once(linear, x, compiled)
    assert seen.operators == ["dense_block", "transition", "dense_block"]
    linear.features.denseblock1.denselayer1.norm1.eval()
    model.load_state_dict(linear.state_dict())
    model.features.denseblock1.denselayer1.norm1.eval()
    seen.operators = []
    assert_same(train_once(linear, x, compiled), train_once(model, x))
    assert seen.operators == ["transition", "dense_block"]
    seen.operators = []
    linear.eval()
    torch.testing.assert_close(compiled(x), linear(x))
    assert seen.operators == []


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_under_autocast():
    model = create_model("densenet_bc40_k12", block_config=(2, 1), growth_rate=4, num_classes=5)
    linear, other = copy_with(model, "linear"), copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    results = []
    for trained, run in ((other, other), (linear, compiled)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(train_once(trained, x, run))
    assert_same(results[1], results[0], relative=3e-2, absolute=3e-2)
    assert results[1]["output"].dtype == torch.bfloat16


def test_an_exported_model_trains_through_the_operators():
    model = make_model(block_config=(2, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(linear, (x,))
    assert own_operators(program.graph) == ["dense_block", "transition", "dense_block"]
    exported = program.module()
    assert_same(train_once(exported, x), train_once(model, x))


def test_an_export_for_inference_has_no_operator_of_ours():
    linear = copy_with(make_model(**SMALL), "linear").eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(linear, (x,))
    assert own_operators(program.graph) == []
    torch.testing.assert_close(program.module()(x), linear(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler needs g++")
@pytest.mark.usefixtures("_fresh_compiler")
def test_inductor_compiles_what_is_around_the_operators():
    model = make_model(block_config=(2, 1), growth_rate=4)
    linear = copy_with(model, "linear")
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(linear, fullgraph=True)
    assert_same(train_once(linear, x, compiled), train_once(model, x))


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "policy"), SAVED)
def test_saved_bytes_against_plain(name, policy):
    model = create_model(name).to(memory_format=torch.channels_last)
    side = 224 if model.config.stem == "imagenet" else 32
    x = torch.randn(1 if side == 224 else 2, 3, side, side).to(memory_format=torch.channels_last)
    plain = saved_bytes(model, x)
    model.set_block_execution(policy)
    assert saved_bytes(model, x) <= SAVED[name, policy] * plain


@pytest.mark.parametrize(
    ("policy", "lowest", "highest"),
    [
        ("plain", 1.4, 2.0),
        ("linear", 0.8, 1.1),
        ("linear-recompute", 0.8, 1.1),
    ],
)
def test_memory_grows_in_proportion_to_the_depth(policy, lowest, highest):
    layers = (6, 24)
    x = torch.randn(2, 3, 16, 16)
    sizes = []
    for count in layers:
        model = create_model("densenet_bc40_k12", block_config=(count,) * 3)
        model.set_block_execution(policy)
        sizes.append(saved_bytes(model, x))
    slope = math.log(sizes[1] / sizes[0]) / math.log(layers[1] / layers[0])
    assert lowest <= slope <= highest


@pytest.mark.parametrize("policy", ["linear", "linear-recompute"])
def test_a_policy_that_is_not_applied_is_said_with_its_reason(
    policy: ExecutionPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    grouped = create_model("densenet_bc40_k12", norm="group", block_config=(1, 1), growth_rate=4)
    modified = se_densenet(3)
    with caplog.at_level(logging.WARNING, "skipnets"):
        grouped.set_block_execution(policy)
        modified.set_block_execution(policy)
        grouped.set_block_execution("auto")
        grouped.set_block_execution("plain")
        grouped.set_block_execution(policy, warn=False)
        grouped.eval().set_block_execution(policy)
    said = [record.getMessage() for record in caplog.records]
    start = f"warning: block_execution={policy}: not applied to"
    assert said == [
        f"{start} features.denseblock1, features.denseblock2, which will run plainly: "
        "denselayer1: its norm is a GroupNorm, not a BatchNorm2d",
        f"{start} features.transition1, which will run plainly: its norm is a GroupNorm, not a BatchNorm2d",
        f"{start} features.denseblock1.denselayer2, which will run plainly: "
        "its convolution is a Sequential, not a Conv2d",
    ]


def test_what_can_be_covered_of_a_modified_network_is_and_computes_the_same() -> None:
    images = torch.rand(4, 3, 8, 8)
    torch.manual_seed(0)
    plain = se_densenet(3)
    linear = copy.deepcopy(plain)
    linear.set_block_execution("linear", warn=False)
    gradients = []
    for model in (plain, linear):
        model(images).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    report = linear.block_execution_report()
    assert [how.partition(":")[0] for how in report.values()] == ["linear", "plain", "linear", "linear"]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)


def test_a_module_without_dense_blocks_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "skipnets"):
        set_block_execution(nn.Linear(1, 1), "linear")
    assert "not applied: there are no blocks of this package in Linear" in caplog.text
