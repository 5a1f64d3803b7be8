"""Whatever the engine is given, it answers or refuses in one line; it never crashes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, Build, dense
from skipnets_engine import (
    Engine,
    EngineError,
    InvalidGraphError,
    TensorsDoNotFitError,
    UnknownArchitectureError,
    _engine,
)


def operation(graph: Any, name: str) -> Any:
    return next(found for found in graph.operations if found.name == name)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("stem", {"kind": "attention"}, UnknownArchitectureError, "stem: .*operation 'attention'"),
        ("stem", {"kind": ["convolution"]}, UnknownArchitectureError, r"operation \['convolution'\]"),
        ("stem", {"padding_mode": "reflect"}, UnknownArchitectureError, "attribute 'padding_mode' of a conv"),
        (
            "norm",
            {"norm": "weight"},
            UnknownArchitectureError,
            "norm: .*evonorm-s0 norm only, not norm='weight'",
        ),
        (
            "norm",
            {"norm": "group", "groups": 3},
            InvalidGraphError,
            "norm: groups=3: must divide the channels",
        ),
        (
            "norm",
            {"norm": "evonorm-s0", "groups": 3},
            InvalidGraphError,
            "norm: groups=3: must divide the channels",
        ),
        ("relu", {"kind": "threshold"}, UnknownArchitectureError, "attribute 'function' of a threshold"),
        ("relu", {"function": "tanh"}, UnknownArchitectureError, "hard_sigmoid function only, not .*'tanh'"),
        (
            "stem",
            {"kernel": 17},
            UnknownArchitectureError,
            "stem: kernel=17: the native engine knows 1 to 15",
        ),
        ("stem", {"kernel": 0}, UnknownArchitectureError, "kernel=0"),
        ("stem", {"kernel": 3.0}, InvalidGraphError, "kernel=3.0: must be a whole number"),
        ("stem", {"stride": True}, InvalidGraphError, "stride=True: must be a whole number"),
        ("stem", {"stride": -1}, InvalidGraphError, "stride=-1"),
        ("stem", {"dilation": 10**9}, UnknownArchitectureError, "dilation=1000000000"),
        ("stem", {"padding": 3}, UnknownArchitectureError, "padding=3: the native engine knows 0 to 2"),
        ("stem", {"groups": 2}, InvalidGraphError, "groups=2: must divide the channels"),
        ("relu", {"kind": "scale"}, UnknownArchitectureError, "attribute 'function' of a scale"),
        ("relu", {"kind": "multiply"}, UnknownArchitectureError, "attribute 'function' of a multiply"),
        ("transition.pool", {"kind": "blur"}, UnknownArchitectureError, "attribute 'mode' of a blur"),
        ("stem", {"bias": 1}, InvalidGraphError, "bias=1: must be True or False"),
        ("stem", {"in_channels": 4}, InvalidGraphError, "in_channels=4: its value has 3 channels"),
        ("stem", {"inputs": (1,)}, InvalidGraphError, "reads value 1, which nothing has written"),
        ("stem", {"inputs": (-1,)}, InvalidGraphError, "reads value -1"),
        ("stem", {"inputs": (0, 0)}, InvalidGraphError, "a convolution reads 1 values, not 2"),
        ("stem", {"inputs": ()}, InvalidGraphError, "must list values"),
        ("stem", {"inputs": 0}, InvalidGraphError, "must list values"),
        ("stem", {"output": 0}, InvalidGraphError, "writes value 0, which is taken"),
        ("stem", {"output": 10**6}, InvalidGraphError, "writes value 1000000"),
        ("stem", {"name": 3}, InvalidGraphError, "name must be text, not 3"),
        ("norm", {"eps": 0.0}, InvalidGraphError, "eps=0.0"),
        ("norm", {"eps": float("nan")}, InvalidGraphError, "eps=nan"),
        ("head", {"in_features": 21}, InvalidGraphError, "in_features=21: its value has 20"),
        ("head", {"out_features": 5}, InvalidGraphError, "out_features=5: its value has 4"),
        ("head", {"kind": "convolution"}, UnknownArchitectureError, "attribute 'in_features'"),
        ("head", {"inputs": (1,)}, InvalidGraphError, "in_features=20: its value has 10"),
        ("transition.pool", {"mode": "median"}, UnknownArchitectureError, "max and average mode only"),
        (
            "transition.pool",
            {"padding": 2},
            UnknownArchitectureError,
            "padding=2: the native engine knows 0 to 1",
        ),
        ("transition.pool", {"dilation": 2}, UnknownArchitectureError, "dilated pooling"),
        ("mean", {"inputs": (1,)}, InvalidGraphError, "mean: makes 10 channels, its value has 20"),
    ],
)
def test_operations_that_are_refused(
    name: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    graph, tensors = dense()
    vars(operation(graph, name)).update(changes)
    with pytest.raises(error, match=message):
        Engine(graph, tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": []}, "operations: must be 1 to"),
        ({"operations": None}, "operations: must be 1 to"),
        ({"values": []}, "values: must be 1 to"),
        ({"features": 0}, "pooled features, value 0 is a map"),
        ({"features": -1}, "features=-1: must be a value that is written"),
        ({"logits": 3}, "pooled logits, value 3 is a map"),
        ({"logits": None}, "logits=None"),
        ({"stages": {"stem": 99}}, "stage stem: value 99 does not exist"),
        ({"stages": []}, "stages must map paths to values"),
    ],
)
def test_graphs_that_are_refused(changes: dict[str, Any], message: str) -> None:
    graph, tensors = dense()
    vars(graph).update(changes)
    with pytest.raises((InvalidGraphError, UnknownArchitectureError), match=message):
        Engine(graph, tensors)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (True, "value 3: channels=True"),
        (0, "value 3: channels=0"),
        (1 << 21, "value 3: channels=2097152: the native engine knows 1 to 1048576"),
        (11, "must have one shape"),
    ],
)
def test_channels_of_values(channels: Any, message: str) -> None:
    graph, tensors = dense()
    graph.values[3].channels = channels
    with pytest.raises(EngineError, match=message):
        Engine(graph, tensors)


def test_maps_of_different_sizes() -> None:
    """Only the size of an image can tell that they do not fit."""
    for join in ("add", "concatenate"):
        build = Build()
        x, y = build.convolution(0, 5, 3), build.convolution(0, 5, 3, stride=2)
        engine = Engine(*build.finish(getattr(build, join)(x, y)))
        assert engine.logits(np.ones((1, 3, 1, 1), np.float32)).shape == (1, 4)
        with pytest.raises(EngineError, match=r"another size|does not fit beside the others"):
            engine.logits(np.ones((1, 3, 8, 8), np.float32))


def test_factors_that_are_maps() -> None:
    build = Build()
    x = build.convolution(0, 5, 3)
    engine = Engine(*build.finish(build.multiply(x, build.relu(x))))
    with pytest.raises(EngineError, match="factors must have one pixel"):
        engine.logits(np.ones((1, 3, 8, 8), np.float32))


def test_a_blur_of_one_pixel() -> None:
    build = Build()
    engine = Engine(*build.finish(build.blur(build.convolution(0, 5, 3))))
    assert engine.logits(np.ones((1, 3, 2, 2), np.float32)).shape == (1, 4)
    with pytest.raises(EngineError, match=r"images of 1×8 are too small"):
        engine.logits(np.ones((1, 3, 1, 8), np.float32))


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (lambda b: b.scale(0), {"channels": 4}, "channels=4: its value has 3 channels"),
        (lambda b: b.along_channels(0, 3), {"kernel": 2}, "kernel=2: the native engine knows odd ones"),
        (lambda b: b.blur(0), {"kernel": 5}, "knows kernel 3 of a blur only"),
        (lambda b: b.cell_mean(0), {"stride": 1}, "knows stride 2 of a cell mean only"),
        (lambda b: b.norm(0, "layer2d"), {"eps": -1.0}, "eps=-1.0"),
        (lambda b: b.norm(0, "group", groups=3), {"groups": 2}, "groups=2: must divide the channels"),
    ],
)
def test_further_operations_that_are_refused(build: Any, changes: dict[str, Any], message: str) -> None:
    new = Build()
    network = new.finish(build(new))
    vars(new.graph.operations[0]).update(changes)
    with pytest.raises(EngineError, match=message):
        Engine(*network)


def test_memory_that_nobody_has() -> None:
    build = Build()
    x = build.convolution(0, 5, 3, dilation=4096, padding=8192)
    for _ in range(3):
        x = build.concatenate(*[x] * 16)
    engine = Engine(*build.finish(build.convolution(x, 5, 3, dilation=4096, padding=8192)))
    with pytest.raises(EngineError, match=r"memory|too large"):
        engine.logits(np.ones((1, 3, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, "missing: stem.weight"),
        (np.zeros((10, 3, 3), np.float32), r"has shape \(10, 3, 3\)"),
        (np.zeros((10, 3, 3, 3), np.int64), "is int64, it should be float32"),
        (np.full((10, 3, 3, 3), np.nan, np.float32), "stem.weight is not finite"),
        (np.zeros((10, 3, 3, 3)), "is float64, it should be float32"),
    ],
)
def test_tensors_that_do_not_fit(replacement: Any, message: str) -> None:
    graph, tensors = dense()
    if replacement is None:
        del tensors["stem.weight"]
    else:
        tensors["stem.weight"] = replacement
    with pytest.raises(TensorsDoNotFitError, match=message):
        Engine(graph, tensors)


def test_negative_variances() -> None:
    graph, tensors = dense()
    tensors["norm.running_var"][3] = -1
    with pytest.raises(TensorsDoNotFitError, match=r"norm.running_var has negative variances"):
        Engine(graph, tensors)


def test_weights_that_overflow_with_their_norm() -> None:
    graph, tensors = dense()
    tensors["block1.layer1.conv1.weight"][:] = 3e38
    tensors["block1.layer1.norm2.weight"][:] = 5
    with pytest.raises(TensorsDoNotFitError, match="not finite in single precision"):
        Engine(graph, tensors)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8), r"must be \(N, C, H, W\)"),
        ((1, 4, 8, 8), "must have 3 channels, not 4"),
        ((1, 3, 0, 8), "at least one pixel"),
        ((1, 3, 1, 9), "images of 1×9 are too small"),
    ],
)
def test_batches_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    engine = Engine(*dense())
    for call in (engine.logits, engine.embed, engine.stages):
        with pytest.raises(EngineError, match=message):
            call(np.zeros(shape, np.float32))


@pytest.mark.parametrize("threads", [-1, 0, 1025])
def test_impossible_numbers_of_threads(threads: int) -> None:
    with pytest.raises(EngineError, match="threads must be from 1 to 1024"):
        Engine(*dense(), threads=threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": 7}, "no such value"),
        ({"output": 0}, "no such value"),
        ({"output": 1, "input": 1}, "nothing has written"),
        ({"input_channel": 1}, "channels outside"),
        ({"output_channel": -1}, "channels outside"),
        ({"weight": np.zeros((2, 3, 16, 16), np.float32)}, "kernel or dilation"),
        ({"padding": 1}, "dilation or padding"),
        ({"bias": np.zeros(3, np.float32)}, "bias of a wrong size"),
        ({"stride": 0}, "stride out of range"),
        ({"added": 1}, "what is added"),
        ({"added": 0, "added_channel": 2}, "what is added"),
        ({"scale": np.ones(3, np.float32)}, "scale and shift of different sizes"),
        ({"pooled": True}, "only activated 1×1"),
        ({"algorithm": "winograd4"}, "only 3×3 convolutions"),
        ({"groups": 0}, "groups out of range"),
        ({"groups": 2}, "channels outside|must divide"),
        ({"gate": 0, "scale": np.ones(3, np.float32), "shift": np.ones(3, np.float32)}, "only plain 1×1"),
        ({"activation": "tanh"}, "unknown activation"),
    ],
)
def test_the_inner_engine_checks_for_itself(arguments: dict[str, Any], message: str) -> None:
    network = _engine.Network()
    network.add_value(3)
    features = network.add_value(2)
    network.features = features
    call = {
        "name": "conv",
        "input": 0,
        "output": features,
        "weight": np.zeros((2, 3, 1, 1), np.float32),
        "bias": np.zeros(2, np.float32),
        **arguments,
    }
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        network.add_convolution(**call)
        _engine.Engine(network, "", 1)


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("elementwise", {"channels": 4}, "channels outside"),
        ("elementwise", {"output": 0}, "no such value"),
        ("elementwise", {"added": 0, "added_channel": 1}, "what is added"),
        ("elementwise", {"scale": np.ones(3, np.float32)}, "scale and shift of different sizes"),
        ("pool", {"mode": "max", "kernel": 16, "stride": 1}, "window or padding"),
        ("pool", {"mode": "max", "kernel": 3, "stride": 1, "padding": 2}, "window or padding"),
        ("pool", {"mode": "best", "kernel": 3, "stride": 1}, "unknown mode best"),
        ("pool", {"mode": "max", "kernel": 3, "stride": 17}, "stride out of range"),
        ("subsample", {"before": 1 << 30}, "channels out of range"),
        ("subsample", {"before": -1, "after": 1}, "channels out of range"),
        ("subsample", {"after": 1}, "channels outside"),
        ("pool", {"mode": "blur", "kernel": 3, "stride": 1, "output": 0}, "no such value"),
        ("elementwise", {"gate": 7}, "factors must be another value"),
        ("elementwise", {"gate": 0, "gate_channel": 1}, "factors must be another value"),
        ("elementwise", {"gate": 0, "gate_shift_channel": 1}, "factors must be another value"),
        ("elementwise", {"gate": 0}, "factors must have one pixel"),
        ("elementwise", {"activation": "tanh"}, "unknown activation tanh"),
        ("elementwise", {"slope": ONES[:2]}, "slopes and floors, one an input channel"),
        ("elementwise", {"floor": ONES[:2]}, "slopes and floors, one an input channel"),
        (
            "group_norm",
            {"groups": 1, "scale": ONES, "shift": ONES, "eps": 1e-5, "moments": "third"},
            "unknown moments third",
        ),
        ("layer_norm", {"scale": ONES, "shift": ONES[:2], "eps": 1e-5}, "scale and shift of different sizes"),
        ("layer_norm", {"scale": ONES, "shift": ONES, "eps": 0.0}, "eps must be positive"),
        ("group_norm", {"groups": 1, "scale": ONES, "shift": ONES, "eps": 1e-5}, "channels outside"),
        (
            "group_norm",
            {"groups": 2, "scale": ONES, "shift": ONES, "eps": 1e-5},
            "channels outside|must divide",
        ),
        ("along_channels", {"weight": ONES[:2]}, "kernel must be odd"),
        ("max", {"input_channel": 1}, "channels outside"),
        ("mean", {"input_channel": 1}, "channels outside"),
        ("elementwise", {}, "must have one pixel"),
    ],
)
def test_the_inner_engine_checks_every_step(kind: str, arguments: dict[str, Any], message: str) -> None:
    network = _engine.Network()
    network.add_value(3)
    network.features = network.add_value(3)
    call = {"name": "step", "input": 0, "output": network.features, "channels": 3, **arguments}
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        getattr(network, f"add_{kind}")(**call)
        _engine.Engine(network, "", 1).run(np.ones((1, 3, 4, 4), np.float32), False)


VALUES = (
    0,
    1,
    -1,
    2,
    3,
    7,
    1 << 20,
    1 << 40,
    0.5,
    None,
    "x",
    [],
    [1],
    (0, 1),
    True,
    "max",
    "norm",
    "add",
    1e-9,
)


def damage(graph: Any, tensors: dict[str, Any], random: np.random.Generator) -> None:
    """One random change to a graph or its tensors."""
    name = str(random.choice(list(tensors)))
    value = VALUES[int(random.integers(len(VALUES)))]
    match int(random.integers(9)):
        case 0:
            attributes = vars(graph.operations[int(random.integers(len(graph.operations)))])
            attributes[str(random.choice(list(attributes)))] = value
        case 1:
            attributes = vars(graph.values[int(random.integers(len(graph.values)))])
            attributes[str(random.choice(list(attributes)))] = value
        case 2:
            attributes = vars(graph.operations[int(random.integers(len(graph.operations)))])
            others = tuple(int(random.integers(len(graph.values))) for _ in attributes["inputs"])
            attributes["inputs"] = others
        case 3:
            vars(graph)[str(random.choice(["features", "logits", "stages"]))] = value
        case 4:
            del tensors[name]
        case 5:
            tensors[name] = tensors[name][..., :-1] if tensors[name].ndim else np.zeros(3, np.float32)
        case 6:
            if tensors[name].dtype.kind == "f" and tensors[name].size:
                tensors[name].flat[0] = random.choice([np.nan, np.inf, -1e38, 1e-45, -1.0])
        case 7:
            tensors[name] = tensors[name].astype(random.choice(["f8", "i4", "f2", "c8", "?"]))
        case 8:
            tensors[f"{name}x"] = tensors.pop(name)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_networks(seed: int) -> None:
    """An answer or an EngineError, nothing else."""
    random = np.random.default_rng(seed)
    refused, answered = 0, 0
    for _ in range(1000):
        graph, tensors = list(NETWORKS.values())[int(random.integers(len(NETWORKS)))]()
        with warnings.catch_warnings():  # of numpy, about the damage done here
            warnings.simplefilter("ignore")
            for _ in range(int(random.integers(1, 4))):
                damage(graph, tensors, random)
        try:
            engine = Engine(graph, tensors, threads=int(random.integers(1, 3)))
            batch = np.ones((int(random.integers(1, 4)), 3, 16, 17), np.float32)
            assert engine.logits(batch).ndim == 2
            assert all(len(stage) == len(batch) for stage in engine.stages(batch).values())
            answered += 1
        except EngineError:
            refused += 1
    assert refused > 10
    assert answered > 10


@pytest.mark.parametrize("sizes", [(0, 8, 1), (8, -8, 1), (8, 1 << 30, 1), (8, 8, 0)])
def test_impossible_sizes_of_images(sizes: tuple[int, int, int]) -> None:
    network = _engine.Network()
    network.add_value(3)
    network.features = network.add_value(3)
    network.add_mean("mean", 0, network.features, 3)
    with pytest.raises(ValueError, match="height, width or images out of range"):
        _engine.Engine(network, "", 1).value_bytes(*sizes)


def test_a_map_larger_than_a_number_can_say() -> None:
    """Of a line of pixels, with as much around it as a dilated kernel may want, and many channels."""
    network = _engine.Network()
    image, deep, result = (network.add_value(channels) for channels in (1, 1 << 24, 1))
    network.features = network.add_value(1)
    network.add_convolution("deep", image, deep, np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.float32))
    network.add_convolution(
        "wide",
        deep,
        result,
        np.zeros((1, 1, 15, 15), np.float32),
        np.zeros(1, np.float32),
        dilation=4096,
        padding=14 * 4096,
    )
    network.add_mean("mean", result, network.features, 1)
    with pytest.raises(ValueError, match="too large"):
        _engine.Engine(network, "", 1).value_bytes(1, 1 << 24, 1)
