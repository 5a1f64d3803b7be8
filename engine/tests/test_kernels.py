"""Every kernel against an obvious slow loop, over random shapes, on every instruction set of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skipnets_engine import _engine

# The fixture `isa` is the same for all examples of a test.
examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sides = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 13, 17])
channel_counts = st.sampled_from([1, 2, 3, 7, 8, 12, 16, 17, 31, 32, 33, 48, 64])
images = st.integers(1, 3)
activations = st.sampled_from(["", *reference.ACTIVATIONS])
threads = st.integers(1, 3)


@dataclass
class Case:
    """Random images and numbers of one shape."""

    seed: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def numbers(self, *shape: int) -> NDArray[np.float32]:
        return self._random.standard_normal(shape).astype(np.float32)


def run(
    network: _engine.Network, images: NDArray[np.float32], result: int, *, isa: str, threads: int
) -> NDArray[np.float32]:
    """A value of a network, for each image."""
    engine = _engine.Engine(network, isa, threads)
    return np.asarray(engine.values(images, [result])[0])


def finish(network: _engine.Network, value: int, channels: int) -> None:
    """Give a network the features that it must have."""
    features = network.add_value(channels)
    network.add_mean("mean", value, features, channels)
    network.features = features


def assert_close(
    mine: NDArray[np.float32], wanted: NDArray[np.float64], function: str = "", *, bound: float = 3e-6
) -> None:
    """`wanted` before an activation, which hardly makes errors larger but may make numbers small."""
    assert mine.shape == wanted.shape
    scale = np.abs(wanted).max() + 1e-30
    assert np.abs(mine - activated(wanted, function)).max() <= bound * scale


def activated(x: NDArray[np.float64], function: str) -> NDArray[np.float64]:
    return reference.ACTIVATIONS[function](x) if function else x


def convolve(
    *,
    case: Case,
    shape: tuple[int, int, int, int],
    outputs: int,
    kernel: int,
    isa: str,
    threads: int,
    **options: Any,
) -> None:
    """One convolution over a map that another one made, so that it has a border and padded channels."""
    inputs, groups = shape[1], options.get("groups", 1)
    x = case.numbers(*shape)
    identity = np.eye(inputs, dtype=np.float32)[:, :, None, None]
    weight, bias = case.numbers(outputs, inputs // groups, kernel, kernel), case.numbers(outputs)
    network = _engine.Network()
    image, copied, result = (network.add_value(c) for c in (inputs, inputs, outputs))
    network.add_convolution("copy", image, copied, identity, np.zeros(inputs, np.float32))
    network.add_convolution("convolution", copied, result, weight, bias, **options)
    finish(network, result, outputs)
    mine = run(network, x, result, isa=isa, threads=threads)
    wanted = reference.convolution(
        x.astype(float),
        weight.astype(float),
        bias.astype(float),
        stride=options.get("stride", 1),
        dilation=options.get("dilation", 1),
        padding=options.get("padding"),
        groups=groups,
    )
    assert_close(mine, wanted, options.get("activation", ""))


@examples
@given(st.data())
def test_direct_convolution(isa: str, data: st.DataObject) -> None:
    kernel, dilation = data.draw(st.sampled_from([1, 2, 3, 4, 5, 7])), data.draw(st.integers(1, 2))
    reach = dilation * (kernel - 1)
    padding = data.draw(st.integers(0, reach))
    smallest = max(reach + 1 - 2 * padding, 1)
    convolve(
        case=Case(),
        shape=(
            data.draw(images),
            data.draw(channel_counts),
            max(data.draw(sides), smallest),
            max(data.draw(sides), smallest),
        ),
        outputs=data.draw(channel_counts),
        kernel=kernel,
        isa=isa,
        threads=data.draw(threads),
        stride=data.draw(st.integers(1, 3)),
        dilation=dilation,
        padding=padding,
        activation=data.draw(activations),
        algorithm="direct",
    )


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@examples
@given(st.data())
def test_winograd_convolution(isa: str, algorithm: str, data: st.DataObject) -> None:
    convolve(
        case=Case(),
        shape=(data.draw(images), data.draw(channel_counts), data.draw(sides), data.draw(sides)),
        outputs=data.draw(channel_counts),
        kernel=3,
        isa=isa,
        threads=data.draw(threads),
        activation=data.draw(activations),
        algorithm=algorithm,
    )


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
@examples
@given(st.data())
def test_grouped_convolution(isa: str, algorithm: str, data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([2, 3, 4, 6, 9, 16]))
    convolve(
        case=Case(),
        shape=(
            data.draw(images),
            groups * data.draw(st.sampled_from([1, 2, 4, 5, 8, 16, 24])),
            data.draw(sides),
            data.draw(sides),
        ),
        outputs=groups * data.draw(st.sampled_from([1, 2, 4, 7, 8, 16, 24, 40])),
        kernel=3,
        groups=groups,
        isa=isa,
        threads=data.draw(threads),
        stride=data.draw(st.integers(1, 2)) if algorithm == "direct" else 1,
        activation=data.draw(activations),
        algorithm=algorithm,
    )


@examples
@given(st.data())
def test_depthwise_convolution(isa: str, data: st.DataObject) -> None:
    """With and without a layer norm behind it, from the middle of one value into the middle of another."""
    channels, skipped = data.draw(channel_counts), data.draw(st.integers(0, 9))
    kernel, dilation = (
        data.draw(st.sampled_from([1, 2, 3, 5, 7, 9])),
        data.draw(st.sampled_from([1, 1, 1, 2])),
    )
    stride, norm, case = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.booleans()), Case()
    reach = dilation * (kernel - 1)
    padding, function = data.draw(st.integers(0, reach)), data.draw(activations)
    smallest = max(reach + 1 - 2 * padding, 1)
    height, width = max(data.draw(sides), smallest), max(data.draw(st.integers(1, 45)), smallest)
    x = case.numbers(data.draw(images), skipped + channels, height, width)
    weight, bias = case.numbers(channels, 1, kernel, kernel), case.numbers(channels)
    scale, shift, eps = case.numbers(channels), case.numbers(channels), 1e-2
    network = _engine.Network()
    image, copied, result = (
        network.add_value(c) for c in (skipped + channels, skipped + channels, 5 + channels)
    )
    network.add_subsample("copy", image, copied, skipped + channels)
    network.add_depthwise(
        "depthwise",
        copied,
        result,
        weight,
        bias,
        input_channel=skipped,
        output_channel=5,
        stride=stride,
        dilation=dilation,
        padding=padding,
        activation=function,
        **({"scale": scale, "shift": shift, "eps": eps} if norm else {}),
    )
    finish(network, result, 5 + channels)
    mine = run(network, x, result, isa=isa, threads=data.draw(threads))[:, 5:]
    wanted = reference.convolution(
        x[:, skipped:].astype(float),
        weight.astype(float),
        bias.astype(float),
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=channels,
    )
    if norm:
        wanted = reference.normalized(wanted, (1,), eps)
        wanted = wanted * scale[:, None, None].astype(float) + shift[:, None, None]
    assert_close(mine, wanted, function, bound=1e-5)


@examples
@given(st.data())
def test_factors_of_channels(isa: str, data: st.DataObject) -> None:
    """An elementwise step and a 1×1 convolution over a map times factors of each image's channels."""
    channels, outputs, case = data.draw(channel_counts), data.draw(channel_counts), Case()
    x = case.numbers(data.draw(images), channels, data.draw(sides), data.draw(sides))
    weight, bias = case.numbers(outputs, channels, 1, 1), case.numbers(outputs)
    scale, shift = case.numbers(channels), case.numbers(channels)
    function, stride = data.draw(activations), data.draw(st.integers(1, 2))
    network = _engine.Network()
    image, copied, gate, multiplied, convolved = (
        network.add_value(c) for c in (channels, channels, 3 + 2 * channels, channels, outputs)
    )
    network.add_subsample("copy", image, copied, channels)
    network.add_mean("gate", copied, gate, channels, output_channel=3)
    network.add_max("shift", copied, gate, channels, output_channel=3 + channels)
    factors = {"gate": gate, "gate_channel": 3}
    network.add_elementwise(
        "multiply",
        copied,
        multiplied,
        channels,
        gate_shift_channel=3 + channels,
        **factors,
        scale=scale,
        shift=shift,
        added=copied,
        activation=function,
    )
    network.add_convolution("convolution", copied, convolved, weight, bias, stride=stride, **factors)
    finish(network, convolved, outputs)
    found = _engine.Engine(network, isa, data.draw(threads)).values(x, [multiplied, convolved])
    exact = x.astype(float)
    mean, largest = exact.mean(axis=(2, 3), keepdims=True), exact.max(axis=(2, 3), keepdims=True)
    wanted = (exact * mean + largest) * scale[:, None, None] + shift[:, None, None] + exact
    assert_close(found[0], wanted, function, bound=1e-5)
    wanted = reference.convolution(
        exact * mean, weight.astype(float), bias.astype(float), stride=stride, padding=0
    )
    assert_close(found[1], wanted, bound=1e-5)


@pytest.mark.parametrize("moments", ["centered", "variance", "squares"])
@examples
@given(st.data())
def test_statistics_of_groups(isa: str, moments: str, data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 3, 8, 32]))
    channels = groups * data.draw(st.sampled_from([1, 2, 3, 5, 16]))
    count, height, width, eps = data.draw(images), data.draw(sides), data.draw(sides), 1e-2
    case, skipped = Case(), data.draw(st.integers(0, 5))
    # Means far from 0: sums of squares alone would lose the variance.
    x = case.numbers(count, skipped + channels, height, width) + np.float32(50)
    scale, shift = case.numbers(channels), case.numbers(channels)
    network = _engine.Network()
    image, copied, statistics = (
        network.add_value(c) for c in (skipped + channels, skipped + channels, 2 * channels)
    )
    network.add_subsample("copy", image, copied, skipped + channels)
    network.add_group_norm(
        "norm",
        copied,
        statistics,
        channels,
        groups,
        scale,
        shift,
        eps=eps,
        moments=moments,
        input_channel=skipped,
    )
    finish(network, statistics, 2 * channels)
    found = run(network, x, statistics, isa=isa, threads=data.draw(threads)).astype(float)
    part = x[:, skipped:].astype(float)
    mine = part * found[:, :channels] + found[:, channels:]
    grouped = part.reshape(count, groups, -1)
    second = (grouped**2).mean(2) if moments == "squares" else grouped.var(2)
    divisor = np.sqrt(second + eps)[:, :, None]
    wanted = (grouped - (grouped.mean(2, keepdims=True) if moments == "centered" else 0)) / divisor
    wanted = wanted.reshape(part.shape) * scale[:, None, None].astype(float) + shift[:, None, None]
    assert np.abs(mine - wanted).max() <= 2e-5 * max(np.abs(scale).max(), 1) * max(10, np.abs(wanted).max())


@pytest.mark.parametrize("function", reference.ACTIVATIONS)
def test_activations_over_their_range(isa: str, function: str) -> None:
    """As exact as single precision: 3e-7 of the larger of input and result, everywhere."""
    near = np.linspace(-12, 12, 48_000, dtype=np.float32)
    far = np.array([0, -0.0, 1e-30, -1e-30, 87, -87, 100, -100, 1e4, -1e4, 3e38, -3e38], np.float32)
    x = np.concatenate([near, far, [np.float32(np.nan)]]).reshape(1, 1, 1, -1).astype(np.float32)
    network = _engine.Network()
    image, result = network.add_value(1), network.add_value(1)
    network.add_elementwise("activate", image, result, 1, activation=function)
    finish(network, result, 1)
    mine = run(network, x, result, isa=isa, threads=1).astype(float).ravel()
    with np.errstate(over="ignore"):  # exp(1e4) is infinite, and 1 / (1 + infinity) is 0
        wanted = reference.ACTIVATIONS[function](x.astype(float)).ravel()
    assert np.isnan(mine[-1])
    bound = 3e-7 * np.maximum(np.abs(x.ravel()), np.abs(wanted))
    assert (np.abs(mine - wanted)[:-1] <= bound[:-1] + 1e-7).all()
    if function != "hard_swish" and "sigmoid" not in function:  # far below 0 nothing is left
        assert (np.abs(mine[(x.ravel() < -87.5)]) <= 1e-30).all()


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel"), [(289, 40, 1), (600, 33, 1), (300, 20, 3), (130, 70, 3), (7, 9, 15)]
)
def test_depths_of_several_blocks(isa: str, inputs: int, outputs: int, kernel: int) -> None:
    convolve(
        case=Case(),
        shape=(2, inputs, 5, 6),
        outputs=outputs,
        kernel=kernel,
        isa=isa,
        threads=2,
        algorithm="direct",
    )


@examples
@given(st.data())
def test_first_convolution_reads_the_image_in_runs(isa: str, data: st.DataObject) -> None:
    channels, outputs, kernel = (
        data.draw(channel_counts),
        data.draw(channel_counts),
        data.draw(st.sampled_from([3, 7])),
    )
    stride, case = data.draw(st.integers(1, 2)), Case()
    x = case.numbers(data.draw(images), channels, data.draw(sides), data.draw(sides))
    weight, bias = case.numbers(outputs, channels, kernel, kernel), case.numbers(outputs)
    network = _engine.Network()
    image, result = network.add_value(channels), network.add_value(outputs)
    network.add_convolution("stem", image, result, weight, bias, stride=stride)
    finish(network, result, outputs)
    mine = run(network, x, result, isa=isa, threads=data.draw(threads))
    wanted = reference.convolution(x.astype(float), weight.astype(float), bias.astype(float), stride=stride)
    assert_close(mine, wanted)


@pytest.mark.parametrize("pooled", [False, True])
@examples
@given(st.data())
def test_activated_convolution(isa: str, pooled: bool, data: st.DataObject) -> None:
    channels, outputs, case = data.draw(channel_counts), data.draw(channel_counts), Case()
    smallest = 2 if pooled else 1
    height, width = (max(data.draw(sides), smallest) for _ in range(2))
    x = case.numbers(data.draw(images), channels, height, width)
    weight, bias = case.numbers(outputs, channels, 1, 1), case.numbers(outputs)
    scale, shift = case.numbers(channels), case.numbers(channels)
    network = _engine.Network()
    image, copied, result = (network.add_value(c) for c in (channels, channels, outputs))
    identity = np.eye(channels, dtype=np.float32)[:, :, None, None]
    network.add_convolution("copy", image, copied, identity, np.zeros(channels, np.float32))
    network.add_convolution("conv", copied, result, weight, bias, scale=scale, shift=shift, pooled=pooled)
    finish(network, result, outputs)
    mine = run(network, x, result, isa=isa, threads=data.draw(threads))
    activated = reference.activation(x.astype(float), scale.astype(float), shift.astype(float))
    if pooled:
        activated = reference.means_over_2x2(activated)
    assert_close(mine, reference.convolution(activated, weight.astype(float), bias.astype(float)))


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
@pytest.mark.parametrize("depth", [20, 300])
def test_what_is_added_comes_before_the_relu(isa: str, algorithm: str, depth: int) -> None:
    case = Case()
    x = case.numbers(2, depth, 6, 7)
    weight, bias, other = case.numbers(18, depth, 3, 3), case.numbers(18), case.numbers(18, depth, 1, 1)
    network = _engine.Network()
    image, shortcut, copied, result = (network.add_value(c) for c in (depth, 18, depth, 18))
    network.add_convolution("shortcut", image, shortcut, other, np.zeros(18, np.float32))
    identity = np.eye(depth, dtype=np.float32)[:, :, None, None]
    network.add_convolution("copy", image, copied, identity, np.zeros(depth, np.float32))
    network.add_convolution(
        "conv", copied, result, weight, bias, added=shortcut, activation="relu", algorithm=algorithm
    )
    finish(network, result, 18)
    mine = run(network, x, result, isa=isa, threads=2)
    x64 = x.astype(float)
    wanted = reference.convolution(x64, weight.astype(float), bias.astype(float))
    wanted += reference.convolution(x64, other.astype(float), np.zeros(18))
    assert_close(mine, np.maximum(wanted, 0))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4", "direct"])
def test_strips_change_nothing(isa: str, algorithm: str, threads: int) -> None:
    """A map so large that the two convolutions run strip by strip, against the same two apart."""
    case, middle = Case(), 64
    x = case.numbers(2, 8, 60, 61)
    first, bias = case.numbers(middle, 8, 1, 1), case.numbers(middle)
    size = 1 if algorithm == "direct" else 3
    second = case.numbers(12, middle, size, size)
    network = _engine.Network()
    image, inner, result, features = (network.add_value(c) for c in (8, middle, 12, 12))
    network.add_convolution("first", image, inner, first, bias, activation="gelu")
    network.add_convolution("second", inner, result, second, np.zeros(12, np.float32), algorithm=algorithm)
    network.add_mean("mean", result, features, 12)
    network.features = features
    engine = _engine.Engine(network, isa, threads)
    apart = engine.values(x, [result])[0].mean(
        axis=(2, 3), dtype=float
    )  # looking inside keeps every map whole
    mine = engine.run(x, False)
    assert_close(np.asarray(mine), apart)


@examples
@given(st.data())
def test_the_other_steps_in_ranges_of_channels(isa: str, data: st.DataObject) -> None:
    """Each reads from inside of one value and writes inside of another, and leaves its neighbors alone."""
    channels, skipped, lead = (
        data.draw(channel_counts),
        data.draw(st.integers(0, 9)),
        data.draw(channel_counts),
    )
    before, after, stride = (data.draw(st.integers(*bounds)) for bounds in ((0, 9), (0, 20), (1, 3)))
    kernel = data.draw(st.integers(1, 5))
    padding, function = data.draw(st.integers(0, kernel // 2)), data.draw(activations)
    height, width = (max(data.draw(sides), kernel) for _ in range(2))
    x = Case().numbers(data.draw(images), skipped + channels, height, width)
    scale, shift = Case(1).numbers(channels), Case(2).numbers(channels)
    part = x[:, skipped:].astype(float)

    def affine(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values * scale[:, None, None].astype(float) + shift[:, None, None]

    scaled = affine(part)
    rectified = reference.activation(part, scale.astype(float), shift.astype(float))
    gated_and_least = part / (1 + np.exp(-scale[:, None, None].astype(float) * part)) + part
    gated_and_least = np.maximum(gated_and_least, shift[:, None, None])
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    added = {"added": 1, "added_channel": skipped}
    taps = Case(3).numbers(data.draw(st.sampled_from([1, 3, 5, 9])))
    along = reference.OPERATIONS["channel convolution"](
        None, [part], {"weight": taps[None, None].astype(float)}
    )
    padded = np.pad(part[:, :, ::stride, ::stride], ((0, 0), (before, after), (0, 0), (0, 0)))
    cases = [
        ("elementwise", {"scale": scale, "shift": shift, "activation": "relu"}, rectified),
        ("elementwise", {"scale": scale, "shift": shift}, scaled),
        ("elementwise", {"activation": function}, activated(part, function)),
        ("elementwise", {"activation": function, **added}, activated(2 * part, function)),
        ("elementwise", {"scale": scale, "shift": shift, **added}, scaled + part),
        ("elementwise", {"slope": scale, "floor": shift, **added}, gated_and_least),
        ("pool", {"mode": "max", **window}, reference.pool(part, "max", **window)),
        ("pool", {"mode": "average", **window}, reference.pool(part, "average", **window)),
        ("pool", {"mode": "cell", "kernel": 2, "stride": 2}, reference.cell_mean(part)),
        ("subsample", {"stride": stride, "before": before, "after": after}, padded),
        ("mean", {"scale": scale, "shift": shift}, rectified.mean(axis=(2, 3), keepdims=True)),
        ("mean", {}, part.mean(axis=(2, 3), keepdims=True)),
        ("max", {}, part.max(axis=(2, 3), keepdims=True)),
        (
            "layer_norm",
            {"scale": scale, "shift": shift, "eps": 1e-2, "activation": function},
            activated(affine(reference.normalized(part, (1,), 1e-2)), function),
        ),
        ("along_channels", {"weight": taps, "activation": function}, activated(along, function)),
    ]
    if min(height, width) > 1:
        cases.append(("pool", {"mode": "blur", "kernel": 3, "stride": 2, "padding": 1}, reference.blur(part)))
    network = _engine.Network()
    image, copied, features = (
        network.add_value(c) for c in (skipped + channels, skipped + channels, channels)
    )
    network.add_subsample("copy", image, copied, skipped + channels)
    targets = []
    for name, options, wanted in cases:
        # What lies in front of the step's channels is written before it, as the layout promises.
        target = network.add_value(lead + wanted.shape[1])
        ends = {"input_channel": skipped, "output_channel": lead}
        if wanted.shape[2:] == part.shape[2:]:
            weight = np.ones((lead, skipped + channels, 1, 1), np.float32)
            network.add_convolution("lead", copied, target, weight, np.zeros(lead, np.float32))
        getattr(network, f"add_{name}")(name, copied, target, channels, **ends, **options)
        targets.append(target)
    network.add_mean("mean", copied, features, channels)
    network.features = features
    found = _engine.Engine(network, isa, data.draw(threads)).values(x, targets)
    for (_, _, wanted), mine in zip(cases, found, strict=True):
        assert_close(mine[:, lead:], wanted)
        if wanted.shape[2:] == part.shape[2:]:
            assert_close(mine[:, :lead], np.repeat(x.astype(float).sum(axis=1, keepdims=True), lead, axis=1))


def test_results_outlive_later_steps(isa: str) -> None:
    """Features that are read early, followed by values of the same shape, for more images than one."""
    case, network = Case(), _engine.Network()
    image, features, *later = (network.add_value(8) for _ in range(5))
    network.add_mean("mean", image, features, 8)
    for source, target in zip([features, *later], later, strict=False):
        weight = case.numbers(8, 8, 1, 1)
        network.add_convolution("linear", source, target, weight, case.numbers(8))
    network.features, network.logits = features, later[-1]
    x = case.numbers(5, 8, 4, 4)
    found = _engine.Engine(network, isa, 1).run(x, False)
    assert_close(found, x.astype(float).mean(axis=(2, 3)))


def test_a_nan_in_an_image_reaches_the_features(isa: str) -> None:
    x = Case().numbers(1, 16, 8, 8)
    x[0, 3, 4, 4] = np.nan
    network = _engine.Network()
    image, result, features = (network.add_value(c) for c in (16, 16, 16))
    network.add_convolution(
        "conv", image, result, Case().numbers(16, 16, 3, 3), np.zeros(16, np.float32), activation="relu"
    )
    network.add_mean("mean", result, features, 16)
    network.features = features
    assert np.isnan(_engine.Engine(network, isa, 1).run(x, False)).any()


@pytest.mark.parametrize("option", ["slope", "floor"])
def test_nan_passes_gates_and_thresholds(isa: str, option: str) -> None:
    x = np.full((1, 17, 1, 1), np.nan, np.float32)
    network = _engine.Network()
    image, result = network.add_value(17), network.add_value(17)
    network.add_elementwise("step", image, result, 17, **{option: np.ones(17, np.float32)})
    finish(network, result, 17)
    assert np.isnan(run(network, x, result, isa=isa, threads=1)).all()


@pytest.mark.parametrize("place", range(9))
def test_nan_is_the_maximum(isa: str, place: int) -> None:
    """Wherever it lies in the window."""
    x = Case().numbers(1, 17, 3, 3)
    x[0, 16].flat[place] = np.nan
    network = _engine.Network()
    image, pooled, largest = (network.add_value(17) for _ in range(3))
    network.add_pool("pool", image, pooled, 17, mode="max", kernel=3, stride=3)
    network.add_max("max", image, largest, 17)
    network.features = largest
    for result in (pooled, largest):
        np.testing.assert_array_equal(
            run(network, x, result, isa=isa, threads=1).reshape(17), x.max(axis=(2, 3)).reshape(17)
        )


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_strips_of_two_convolutions(isa: str, kernel: int, stride: int) -> None:
    """Large maps pass by strips, but not where all values are kept. The last fits where the first lies."""
    case, network = Case(), _engine.Network()
    image, first, between, last, features = (network.add_value(c) for c in (3, 64, 64, 64, 64))
    bias = np.zeros(64, np.float32)
    algorithm = "winograd2" if kernel == 3 else "auto"
    network.add_convolution("first", image, first, case.numbers(64, 3, 3, 3), bias)
    network.add_convolution("between", first, between, case.numbers(64, 64, 1, 1), bias, stride=stride)
    network.add_convolution(
        "last", between, last, case.numbers(64, 64, kernel, kernel), bias, algorithm=algorithm
    )
    network.add_mean("mean", last, features, 64)
    network.features = features
    x = case.numbers(2, 3, 56 * stride, 56 * stride)
    for count in (1, 2):
        for number in (1, 2):
            engine = _engine.Engine(network, isa, count)
            wanted = np.asarray(engine.values(x[:number], [features])[0]).reshape(number, 64)
            assert_close(engine.run(x[:number], False), wanted.astype(np.float64), bound=1e-5)
