"""Linear execution must give the plain path's numbers; choosing it, and switching back."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.block_policies import (
    POLICIES,
    SMALL,
    assert_ran,
    assert_same,
    copy_with,
    make_model,
    state,
    train_once,
    without_running_statistics,
)
from tests.helpers.own_networks import se_densenet
from torch import nn

from skipnets.errors import UserError
from skipnets.models import create_model, list_models
from skipnets.models.block_execution import MemoryEfficientDenseBlock, set_block_execution
from skipnets.models.graph import ExecutionPolicy
from skipnets.ops import convolution, dense_block, residual_block, stem, transition
from skipnets.ops.choices import Choices

pytestmark = pytest.mark.usefixtures("small_chunks")
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


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "size"), [("densenet_bc40_k12", 8), ("densenet121", 40)])
def test_norms_whose_tracking_is_switched_off(name, size, policy):
    """Their running statistics stay, as consistency training wants it of some passes."""
    model = make_model(name, **SMALL)
    linear = copy_with(model, policy)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    for tracks in (False, True):
        for module in (*model.modules(), *linear.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = tracks
        assert_same(train_once(linear, x), train_once(model, x))
        unchanged = [torch.equal(buffer, before[name]) for name, buffer in linear.named_buffers()]
        assert not any(unchanged) if tracks else all(unchanged)
    assert_ran(linear, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("widened", [(1,), (2,), (2, 3), (4,)])
def test_layers_whose_bottlenecks_have_other_widths(widened, policy):
    model = make_model(block_config=(4, 1), growth_rate=4)
    for number in widened:
        layer = model.features.denseblock1.get_submodule(f"denselayer{number}")
        layer.conv1 = nn.Conv2d(layer.conv1.in_channels, 24, 1, bias=False).double()
        layer.norm2 = nn.BatchNorm2d(24).double()
        layer.conv2 = nn.Conv2d(24, 4, 3, padding=1, bias=False).double()
    linear = copy_with(model, policy)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(train_once(linear, x), train_once(model, x))
    assert_ran(linear, policy)


@pytest.mark.parametrize("policy", ["plain", "linear"])
def test_a_module_that_stands_in_several_places_runs_in_each(policy):
    """A ReLU behind the stem and at the end, and a layer that grows nothing but zeros."""

    class Zeros(nn.Module):
        def forward(self, features):
            return torch.zeros_like(features[:, :4])

    model = make_model("densenet121", block_config=(1, 3), growth_rate=4)
    block = model.features.denseblock2
    block.denselayer1, block.denselayer2 = Zeros(), Zeros()
    shared = copy_with(model, policy)
    shared.features.relu5 = shared.features.relu0
    shared.features.denseblock2.denselayer2 = shared.features.denseblock2.denselayer1
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    assert_same(train_once(shared, x), train_once(model, x))
    expected, found = (each.forward_intermediates(x, intermediates_only=True) for each in (model, shared))
    torch.testing.assert_close(found, expected)
    assert len(found) == 3
    assert found[-1].min() == 0


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "resnet50"])
def test_the_default_dtype_plays_no_part(name, monkeypatch):
    """What is measured and made on the way has the network's type."""
    for module in (convolution, dense_block, residual_block, stem, transition):
        monkeypatch.setattr(module, "CHOICES", Choices(None))
    fields = SMALL if name == "densenet121" else {"block_config": (1, 1), "width": 4}
    model = copy_with(make_model(name, **fields).float(), "linear")
    x = torch.randn(3, 3, 40, 40)
    torch.set_default_dtype(torch.float64)
    try:
        model(x).square().sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {how.partition(":")[0] for how in model.block_execution_report().values()} == {"linear"}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


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


def test_a_stem_under_autocast():
    linear = copy_with(create_model("densenet121", **SMALL), "linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = linear(torch.randn(4, 3, 40, 40))
    output.float().sum().backward()
    assert_ran(linear, "linear")
    assert linear.features.conv0.weight.grad.dtype == torch.float32


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


def test_one_value_a_channel_is_plains_own_error():
    model = copy_with(create_model("densenet_bc40_k12", **SMALL), "linear")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, 3, 4, 4))


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


def test_an_unknown_policy_is_an_error_naming_the_known():
    with pytest.raises(UserError, match=r'"liner"; did you mean linear.*plain, linear, linear-recompute'):
        create_model("densenet_bc40_k12").set_block_execution("liner")


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
