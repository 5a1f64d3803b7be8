"""Repeating recorded launches: addresses, and what makes them be made by Triton again.

Without a GPU, a kernel that was "compiled" runs in Triton's interpreter on tensors made from bare addresses,
so that a wrong offset reads or writes wrong memory.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters, execute

pytest.importorskip("triton")
from skipnets.models import block_execution
from skipnets.ops.triton import dense_block as fused
from skipnets.ops.triton import kernels, launches, slower_launches
from skipnets.ops.triton.launches import Launches, Recorder

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton compiles the kernels on this machine"
)

KERNELS = [
    name for name, value in vars(kernels).items() if hasattr(value, "arg_names") and not name.startswith("_")
]


class Compiled:
    """Stands for a compiled kernel: takes addresses for tensors, as Triton's launcher does."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, kernel, ordered, options, repeats):
        self.kernel, self.options, self.repeats = kernel, options, repeats
        self.types = [argument.dtype if isinstance(argument, torch.Tensor) else None for argument in ordered]

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        assert (function, metadata, launch_metadata, enter, leave) == (
            "function",
            "metadata",
            None,
            None,
            None,
        )
        self.repeats.append(self.kernel)
        tensors = [
            torch.frombuffer((ctypes.c_byte * 4).from_address(argument), dtype=dtype) if dtype else argument
            for argument, dtype in zip(arguments, self.types, strict=True)
        ]
        self.kernel[x, y, z](*tensors, **self.options)


class Kernel:
    """Stands for a kernel that Triton compiles."""

    def __init__(self, kernel, repeats):
        self.kernel, self.repeats, self.arg_names = kernel, repeats, kernel.arg_names

    def __getitem__(self, grid):
        def start(*arguments, **options):
            self.kernel[grid](*arguments, **options)
            given = dict(zip(self.arg_names, arguments, strict=False)) | options
            ordered = [given[name] for name in self.arg_names]
            compiler = {name: value for name, value in options.items() if name not in self.arg_names}
            return Compiled(self.kernel, ordered, compiler, self.repeats)

        return start


@pytest.fixture
def repeats(monkeypatch):
    """The kernels that were launched again; recording starts afresh."""
    found = []
    compiled = {name: Kernel(getattr(kernels, name), found) for name in KERNELS}
    monkeypatch.setattr(fused, "kernels", SimpleNamespace(**compiled))
    monkeypatch.setattr(fused, "LAUNCHES", Launches())
    return found


def make_layers(seed, count=2, channels=16, growth_rate=16, bottleneck=32):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for index in range(count):
        seen = channels + index * growth_rate
        sizes = (
            (seen,),
            (seen,),
            (bottleneck, seen, 1, 1),
            (bottleneck,),
            (bottleneck,),
            (growth_rate, bottleneck, 3, 3),
        )
        layers.append(
            LayerParameters(*(torch.randn(size, generator=generator).requires_grad_() for size in sizes))
        )
    return layers


def step(x, layers, plan, downstream):
    x = x.detach().requires_grad_()
    result = execute(fused.FUSED, x, plan, layers)
    parameters = [tensor for layer in layers for tensor in layer]
    gradients = torch.autograd.grad(result.features, [x, *parameters], downstream)
    return [result.features.detach(), *result.statistics, *result.bottleneck_statistics, *gradients]


@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_repeated_pass_equals_one_that_triton_launches(repeats, monkeypatch, keep):
    """Other parameters at other addresses, and two forward passes before their backward passes."""
    plan = DenseBlockPlan((1e-3, 1e-2), (1e-3, 1e-5), keep, torch.float32)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 16, 3, 4, generator=generator).contiguous().unbind(0)
    downstream = torch.randn(2, 48, 3, 4, generator=generator)
    step(images[0], make_layers(0), plan, downstream)
    assert repeats == []
    layers = [make_layers(1), make_layers(2)]
    inputs = [x.clone().requires_grad_() for x in images[1:]]
    results = [execute(fused.FUSED, x, plan, own).features for x, own in zip(inputs, layers, strict=True)]
    parameters = [[tensor for layer in own for tensor in layer] for own in layers]
    own = [
        torch.autograd.grad(result, [x, *flat], downstream)
        for result, x, flat in zip(results, inputs, parameters, strict=True)
    ]
    launched = len(repeats)
    assert launched == 2 * (2 + 4 * 2 + (6 if keep else 7) * 2 + 1)
    monkeypatch.setattr(fused, "LAUNCHES", Launches())
    for result, gradients, x, flat in zip(results, own, inputs, layers, strict=True):
        expected = step(x, flat, plan, downstream)
        assert torch.equal(result, expected[0])
        for a, b in zip(gradients, expected[5:], strict=True):
            assert torch.equal(a, b)


def test_other_sizes_and_unaligned_tensors_are_launched_by_triton(repeats):
    plan = DenseBlockPlan((1e-3, 1e-2), (1e-3, 1e-5), True, torch.float32)
    x, downstream = torch.randn(2, 3, 4, 16).permute(0, 3, 1, 2), torch.randn(2, 48, 3, 4)
    layers = make_layers(0)
    expected = step(x, layers, plan, downstream)
    step(x[:1], layers, plan, downstream[:1])
    step(x, layers, DenseBlockPlan((1e-4, 1e-2), (1e-3, 1e-5), True, torch.float32), downstream)
    assert repeats == []
    unaligned = torch.empty(x.numel() + 1)[1:].view(2, 3, 4, 16).permute(0, 3, 1, 2).copy_(x)
    assert unaligned.data_ptr() % 16
    forward = 2 + 4 * 2
    for a, b in zip(step(unaligned, layers, plan, downstream), expected, strict=True):
        assert torch.equal(a, b)
    assert not any(kernel is kernels.input_columns for kernel in repeats[:forward])


def test_saved_features_that_lost_their_padding_get_it_back(repeats):
    """`save_on_cpu` and its like keep the values alone; the launches are recorded for padded rows."""
    plan = DenseBlockPlan((1e-3, 1e-2), (1e-3, 1e-5), True, torch.float32)
    x, downstream = torch.randn(2, 8, 3, 4), torch.randn(2, 20, 3, 4)
    layers = make_layers(0, channels=8, growth_rate=6)
    expected = step(x, layers, plan, downstream)
    for pack in (torch.clone, torch.Tensor.contiguous):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            found = step(x, layers, plan, downstream)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    assert any(kernel is kernels.bottleneck_backward for kernel in repeats)


@pytest.fixture
def slower(monkeypatch):
    """What has been found slower; nothing yet."""
    monkeypatch.setattr(launches, "SLOWER", {})
    return launches.SLOWER


def test_a_launcher_of_another_kind_is_told_once_and_not_used_twice(repeats, slower, monkeypatch, caplog):
    plan = DenseBlockPlan((1e-3, 1e-2), (1e-3, 1e-5), True, torch.float32)
    x, downstream, layers = torch.randn(2, 16, 3, 4), torch.randn(2, 48, 3, 4), make_layers(0)
    expected = step(x, layers, plan, downstream)

    def run(self, *arguments):
        repeats.append(self)
        raise TypeError("function takes exactly 9 arguments")

    monkeypatch.setattr(Compiled, "run", run)
    for _ in range(2):
        for a, b in zip(step(x, layers, plan, downstream), expected, strict=True):
            assert torch.equal(a, b)
    assert len(repeats) == 1
    (message,) = caplog.messages
    assert "Triton examines every launch" in message
    assert slower_launches() == "Triton examines every launch"


def test_a_pointer_into_no_tensor_of_the_pass_is_refused(repeats):
    recorder = Recorder([torch.zeros(16)])
    kernel = fused.kernels.finish_sums
    with pytest.raises(LookupError, match="does not lie in any tensor"):
        recorder(kernel, (1, 1), torch.ones(4), 1, torch.empty(4), 4, BLOCK_P=1, BLOCK=4)


def test_profilers_see_every_launch(repeats, monkeypatch):
    hooks = SimpleNamespace(launch_enter_hook=SimpleNamespace(calls=[print]), launch_exit_hook=None)
    plan = DenseBlockPlan((1e-3,), (1e-3,), True, torch.float32)
    x, downstream, layers = torch.randn(2, 16, 3, 4), torch.randn(2, 32, 3, 4), make_layers(0, 1)
    step(x, layers, plan, downstream)
    monkeypatch.setattr(launches.triton, "knobs", SimpleNamespace(runtime=hooks))
    step(x, layers, plan, downstream)
    assert repeats == []
    hooks.launch_enter_hook.calls.clear()
    step(x, layers, plan, downstream)
    assert repeats


def test_compiling_ahead_that_fails_is_told_once_and_reported(slower, caplog):
    def build(_):
        raise RuntimeError("another version's\nway to compile")

    if not hasattr(launches.triton, "AsyncCompileMode"):
        pytest.skip("this Triton compiles each kernel at its first launch anyway")
    for _ in range(2):
        launches.compile_kernels(build)
    (message,) = caplog.messages
    assert caplog.records[0].levelname == "WARNING"
    assert "kernels are compiled one by one" in message
    assert "another version's way to compile" in message
    assert slower_launches() == "kernels are compiled one by one"


def test_a_report_names_what_is_slower(slower):
    execution = block_execution.MemoryEfficientTransition(8, 4, norm="batch").train()
    execution.has_run, execution.executor = True, "fused kernels"
    assert execution.policy == "linear: fused kernels"
    slower["kernels are compiled one by one"] = "Triton 9"
    assert execution.policy == "linear: fused kernels, but kernels are compiled one by one"
