"""The native executor of a dense block against PyTorch's operators in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.bits import assert_the_same_bits_in_several_callers
from tests.helpers.forks import assert_a_fork_computes_the_same
from tests.helpers.rounding import assert_as_exact_as, errors, random_normal

from skipnets.ops import native
from skipnets.ops.dense_block import REFERENCE, DenseBlockPlan, LayerParameters, cpu_executor, execute

if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)
from skipnets.ops.native.dense_block import NATIVE

dense_block = functools.partial(execute, NATIVE)
reference = functools.partial(execute, REFERENCE)

EPS = (1e-3, 1e-5, 1e-2, 1e-4)


class Block:
    """Random parameters, input and gradient of one block, in float64."""

    def __init__(self, images, height, width, channels, growth, bottleneck, layers, seed=0):
        normal = random_normal(seed)
        self.x = normal(images, channels, height, width)
        self.downstream = normal(images, channels + layers * growth, height, width)
        self.layers = []
        for layer in range(layers):
            seen = channels + layer * growth
            self.layers.append(
                (
                    normal(seen),
                    normal(seen, scale=0.5),
                    normal(bottleneck, seen, 1, 1, scale=seen**-0.5),
                    normal(bottleneck),
                    normal(bottleneck, scale=0.5),
                    normal(growth, bottleneck, 3, 3, scale=(9 * bottleneck) ** -0.5),
                )
            )

    def run(self, block, dtype, *, keep=True, needs_input_grad=True, memory_format=torch.contiguous_format):
        """Everything that a pass forward and backward makes, in float64."""
        eps = EPS[: len(self.layers)]
        plan = DenseBlockPlan(eps, eps[::-1], keep, dtype)
        x = self.x.to(dtype, copy=True).contiguous(memory_format=memory_format)
        x.requires_grad_(needs_input_grad)
        layers = [
            LayerParameters(*(tensor.to(dtype, copy=True).requires_grad_() for tensor in layer))
            for layer in self.layers
        ]
        result = block(x, plan, layers)
        result.features.backward(self.downstream.to(dtype))
        made = [result.features, *result.statistics, *result.bottleneck_statistics]
        made += [x.grad] if needs_input_grad else []
        made += [tensor.grad for layer in layers for tensor in layer]
        return [tensor.detach().double() for tensor in made]


shapes = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 8, 15]),
    st.sampled_from([1, 2, 4, 7, 17]),
    st.sampled_from([1, 3, 8, 16, 17, 40]),
    st.sampled_from([1, 4, 12, 16, 17, 32]),
    st.sampled_from([1, 4, 15, 16, 48]),
    st.integers(1, 3),
)


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes, keep=st.booleans(), threads=st.integers(1, 3))
def test_equals_float64_for_any_shape(isa, shape, keep, threads):
    if shape[0] * shape[1] * shape[2] < 4:
        shape = (3, 2, 2, *shape[3:])  # Norms over two values turn a rounding error into any other value.
    torch.set_num_threads(threads)
    block = Block(*shape)
    exact = block.run(reference, torch.float64)
    own = block.run(dense_block, torch.float32, keep=keep)
    # A ReLU whose input is within rounding of 0 may go either way; over so few values it shows.
    assert sorted(errors(own, exact))[-3] <= 3e-5
    assert max(errors(own[:5], exact[:5])) <= 1e-5


def test_is_as_exact_as_pytorch_tensor_by_tensor(isa):
    """Over seeds, each tensor's error is on average no more than that of PyTorch's float32."""
    blocks = [Block(4, 9, 8, 24, 12, 48, 3, seed=seed) for seed in range(6)]
    assert_as_exact_as(
        (
            (
                block.run(dense_block, torch.float32),
                block.run(reference, torch.float32),
                block.run(reference, torch.float64),
            )
            for block in blocks
        ),
        each=2,
        mean=1.2,
    )


def test_the_same_bits_for_the_same_number_of_threads():
    block = Block(3, 7, 6, 16, 8, 32, 3)
    assert_the_same_bits_in_several_callers(lambda: block.run(dense_block, torch.float32))


def test_recomputing_changes_no_bit():
    block = Block(3, 7, 6, 16, 8, 32, 3)
    kept, recomputed = (block.run(dense_block, torch.float32, keep=keep) for keep in (True, False))
    for own, wanted in zip(recomputed, kept, strict=True):
        assert torch.equal(own, wanted)


def test_any_memory_format_and_an_input_without_gradient():
    block = Block(3, 7, 6, 16, 8, 32, 2)
    expected = block.run(dense_block, torch.float32)
    last = block.run(dense_block, torch.float32, memory_format=torch.channels_last)
    without = block.run(dense_block, torch.float32, needs_input_grad=False)
    for own, wanted in zip(last, expected, strict=True):
        assert torch.equal(own, wanted)
    for own, wanted in zip(without, expected[:5] + expected[6:], strict=True):
        assert torch.equal(own, wanted)


def test_gradients_have_their_parameters_memory_format():
    block = Block(2, 4, 4, 8, 4, 16, 1)
    plan = DenseBlockPlan((1e-5,), (1e-5,), True, torch.float32)
    tensors = [tensor.float() for tensor in block.layers[0]]
    tensors[5] = tensors[5].contiguous(memory_format=torch.channels_last)
    layer = LayerParameters(*(tensor.requires_grad_() for tensor in tensors))
    dense_block(block.x.float(), plan, [layer]).features.sum().backward()
    assert layer.weight2.grad.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight2.grad.stride() == layer.weight2.stride()


def test_the_default_dtype_plays_no_part():
    block = Block(2, 4, 4, 8, 4, 16, 1)
    expected = block.run(dense_block, torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        found = block.run(dense_block, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    for own, wanted in zip(found, expected, strict=True):
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("gamma", [0.0, 1e-30, -1e-6])
def test_small_gammas(gamma):
    block = Block(3, 5, 5, 8, 4, 16, 2)
    for layer in block.layers:
        layer[0][::3] = gamma
        layer[3][::3] = gamma
    assert max(errors(block.run(dense_block, torch.float32), block.run(reference, torch.float64))) <= 3e-5


def test_nan_stays_nan():
    block = Block(2, 4, 4, 8, 4, 16, 1)
    block.x[0, 3, 1, 1] = float("nan")
    own, expected = (block.run(run, torch.float32) for run in (dense_block, reference))
    assert own[0][:, 8:].isnan().all()
    for a, b in zip(own, expected, strict=True):
        assert torch.equal(
            a.isnan().flatten(1).any(1) if a.ndim > 1 else a.isnan().any(),
            b.isnan().flatten(1).any(1) if b.ndim > 1 else b.isnan().any(),
        )


def test_second_derivatives_are_refused():
    block = Block(2, 4, 4, 8, 4, 16, 1)
    x = block.x.float().requires_grad_()
    layer = LayerParameters(*(tensor.float() for tensor in block.layers[0]))
    features = dense_block(x, DenseBlockPlan((1e-5,), (1e-5,), True, torch.float32), [layer]).features
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(features.sum(), x, create_graph=True)


def _prepared():
    torch.set_num_threads(2)
    block = Block(2, 4, 4, 8, 4, 16, 1)
    block.run(dense_block, torch.float32)
    torch.set_num_threads(1)
    return lambda: float(block.run(dense_block, torch.float32)[0].sum())


def test_a_forked_process_computes_the_same():
    assert_a_fork_computes_the_same(__name__, "_prepared")


def test_the_executor_is_measured_and_used(monkeypatch):
    from skipnets.ops import dense_block as module
    from skipnets.ops.choices import Choices

    choices = Choices(None)
    monkeypatch.setattr(module, "CHOICES", choices)
    block = Block(2, 4, 4, 8, 4, 16, 1)
    layers = [LayerParameters(*(tensor.float() for tensor in layer)) for layer in block.layers]
    with choices.recording() as record:
        chosen = cpu_executor(block.x.float(), torch.float32, layers)
    assert record["dense block 8-8>16 4x4"] == chosen
    assert chosen in ("native", "pytorch")
    plan = DenseBlockPlan((1e-5,), (1e-5,), True, torch.float32)
    for way, own in (("native", dense_block), ("pytorch", reference)):
        choices.repeat({"dense block 8-8>16 4x4": way})
        found = module.dense_block(block.x.float(), plan, layers).features
        assert torch.equal(found, own(block.x.float(), plan, layers).features)
    assert cpu_executor(block.x, torch.float64, layers) == "pytorch"
