"""The native executor of a stem against PyTorch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.bits import assert_the_same_bits_in_several_callers
from tests.helpers.forks import assert_a_fork_computes_the_same
from tests.helpers.rounding import assert_as_exact_as, errors, random_normal

from skipnets.ops import native
from skipnets.ops import stem as module
from skipnets.ops.choices import Choices
from skipnets.ops.stem import REFERENCE, StemParameters, StemPlan, cpu_executor, execute, stem

if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)
from skipnets.ops.native.stem import NATIVE

EPS = 1e-4
IMAGENET, CIFAR = (7, 2, True), (3, 1, False)  # size and stride of the convolution, whether it pools


class Case:
    """Random numbers of one stem, in float64: images, parameters and gradient."""

    def __init__(self, images, channels, outputs, kind=IMAGENET, seed=0):
        normal = random_normal(seed)
        self.size, self.stride, self.pools = kind
        count, height, width = images
        self.images = normal(count, channels, height, width)
        weight = normal(outputs, channels, self.size, self.size) / (channels**0.5 * self.size)
        self.parameters = [weight, normal(outputs), normal(outputs) / 2]
        self.downstream = normal(*self.layer_by_layer(self.images, *self.parameters).shape)

    def layer_by_layer(self, images, weight, gamma, beta):
        maps = F.conv2d(images, weight, stride=self.stride, padding=self.size // 2)
        maps = F.relu(F.batch_norm(maps, None, None, gamma, beta, training=True, eps=EPS))
        return F.max_pool2d(maps, 3, 2, 1) if self.pools else maps

    def by(self, way, keep=True):
        plan = StemPlan(EPS, keep, torch.float32, self.stride, self.pools)
        return lambda images, *parameters: execute(way, images, plan, StemParameters(*parameters)).maps

    def run(self, stem, dtype, memory_format=torch.contiguous_format):
        """The maps and the parameters' gradients, in float64."""
        images = self.images.to(dtype).contiguous(memory_format=memory_format)
        leaves = [own.to(dtype, copy=True).requires_grad_() for own in self.parameters]
        maps = stem(images, *leaves)
        gradients = torch.autograd.grad(maps, leaves, self.downstream.to(dtype))
        return [each.detach().double() for each in (maps, *gradients)]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    images=st.tuples(st.integers(2, 3), st.sampled_from([3, 6, 13, 22]), st.sampled_from([4, 7, 19])),
    channels=st.sampled_from([1, 3, 4, 17]),
    outputs=st.sampled_from([1, 4, 15, 16, 33]),
    size=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 2),
    pools=st.booleans(),
    keep=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_float64_for_any_shape(isa, images, channels, outputs, size, stride, pools, keep, threads):
    torch.set_num_threads(threads)
    case = Case(images, channels, outputs, (size, stride, pools))
    exact = case.run(case.layer_by_layer, torch.float64)
    own = case.run(case.by(NATIVE, keep), torch.float32)
    assert own[0].shape == exact[0].shape
    assert errors(own[:1], exact[:1])[0] <= 1e-5
    # A ReLU whose input is within rounding of 0 may go either way; over so few values it shows.
    assert sorted(errors(own, exact))[1] <= 3e-5


@pytest.mark.parametrize("kind", [IMAGENET, CIFAR], ids=["imagenet", "cifar"])
def test_is_as_exact_as_pytorch_tensor_by_tensor(isa, kind):
    """Over seeds, each tensor's error is about that of PyTorch's float32."""
    cases = [Case((3, 21, 26), 3, 24, kind, seed) for seed in range(6)]
    assert_as_exact_as(
        (
            case.run(case.by(NATIVE), torch.float32),
            case.run(case.layer_by_layer, torch.float32),
            case.run(case.layer_by_layer, torch.float64),
        )
        for case in cases
    )


def test_large_images_are_cut_into_pieces(isa):
    case = Case((1, 70, 330), 3, 20)
    own, exact = case.run(case.by(NATIVE), torch.float32), case.run(case.layer_by_layer, torch.float64)
    assert errors(own[:1], exact[:1])[0] <= 1e-5
    assert max(errors(own, exact)) <= 1e-3


def test_the_same_bits_for_the_same_number_of_threads():
    case = Case((3, 19, 22), 3, 20)
    keeps = iter([True, False] * 6)  # What is computed again is the same, too.
    assert_the_same_bits_in_several_callers(lambda: case.run(case.by(NATIVE, next(keeps)), torch.float32))


def test_any_memory_format():
    case = Case((2, 15, 14), 3, 9)
    own = case.run(case.by(NATIVE), torch.float32)
    for last, wanted in zip(case.run(case.by(NATIVE), torch.float32, torch.channels_last), own, strict=True):
        assert torch.equal(last, wanted)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight, gamma, beta = (each.float() for each in case.parameters)
        weight = weight.contiguous(memory_format=memory_format).requires_grad_()
        case.by(NATIVE)(case.images.float(), weight, gamma, beta).sum().backward()
        assert weight.grad.stride() == weight.stride()


def test_equal_values_share_no_gradient():
    """The first of a window's maxima gets it, and nobody where the ReLU made it 0."""
    case = Case((1, 12, 12), 1, 3)
    case.images.fill_(1.0)  # All pixels but those at the border see the same.
    own = case.run(case.by(NATIVE), torch.float32)
    wanted = case.run(case.layer_by_layer, torch.float32)
    assert errors(own[1:], wanted[1:]) == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize("kind", [IMAGENET, CIFAR], ids=["imagenet", "cifar"])
def test_nan_stays_nan(kind):
    case = Case((2, 12, 12), 3, 5, kind)
    case.images[0, 1, 5, 5] = float("nan")
    own, wanted = (case.run(case.by(way), torch.float32) for way in (NATIVE, REFERENCE))
    for a, b in zip(own, wanted, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize(("keep", "map_bytes"), [(True, 4 * 2 * 8 * 8 * 10), (False, 0)])
def test_what_is_saved_is_one_map_and_a_byte_for_each_maximum(keep, map_bytes):
    case = Case((2, 16, 16), 3, 10)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    images, parameters = case.images.float(), [each.float().requires_grad_() for each in case.parameters]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = case.by(NATIVE, keep)(images, *parameters)
    given = images.nbytes + sum(each.nbytes for each in parameters)
    assert sum(saved.values()) - given == map_bytes + maps.numel() + 2 * 4 * 10


def test_the_executor_is_measured_and_used(monkeypatch):
    choices = Choices(None)
    monkeypatch.setattr(module, "CHOICES", choices)
    case = Case((2, 14, 15), 3, 8)
    images, parameters = case.images.float(), StemParameters(*(each.float() for each in case.parameters))
    plan = StemPlan(EPS, True, torch.float32)
    with choices.recording() as record:
        chosen = cpu_executor(images, plan, parameters)
    problem = "stem 3>8(7) stride 2 pooled 14x15"
    assert record == {problem: chosen}
    for way, executor in (("native", NATIVE), ("pytorch", REFERENCE)):
        choices.repeat({problem: way})
        own = stem(images, plan, parameters).maps
        assert torch.equal(own, case.by(executor)(images, *parameters))
    choices.repeat({problem: "native"})
    assert cpu_executor(images.requires_grad_(), plan, parameters) == "pytorch"
    assert cpu_executor(case.images, plan._replace(dtype=torch.float64), parameters) == "pytorch"
    turned = parameters._replace(weight=parameters.weight.transpose(2, 3))  # in no order that kernels know
    assert cpu_executor(images.detach(), plan, turned) == "pytorch"


def _prepared():
    torch.set_num_threads(2)
    case = Case((2, 10, 10), 3, 4)
    return lambda: float(case.run(case.by(NATIVE), torch.float32)[1].sum())


def test_a_forked_process_computes_the_same():
    assert_a_fork_computes_the_same(__name__, "_prepared")
