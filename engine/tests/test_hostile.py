"""Whatever the engine is given, it answers or refuses in one line; it never crashes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from skipnets_engine import Engine, EngineError, TensorsDoNotFitError, UnknownArchitectureError, _engine
from small_models import densenet, resnet


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"family": "vgg"}, UnknownArchitectureError, "family 'vgg'"),
        ({"norm": "group"}, UnknownArchitectureError, "norm='group'"),
        ({"norm": None}, UnknownArchitectureError, "norm=None"),
        ({"stem": "patch"}, UnknownArchitectureError, "stem 'imagenet' and 'cifar', not 'patch'"),
        ({"growth_rate": 0}, TensorsDoNotFitError, "growth_rate must be a whole number"),
        ({"growth_rate": 10**9}, TensorsDoNotFitError, "growth_rate must be a whole number"),
        ({"growth_rate": 6}, TensorsDoNotFitError, r"denselayer1\.conv1\.weight has shape \(20, 10, 1, 1\)"),
        ({"block_config": [2]}, TensorsDoNotFitError, r"left over: features\.transition1"),
        ({"block_config": [2, 1]}, TensorsDoNotFitError, r"norm5\.weight has shape"),
        ({"block_config": [2, 3]}, TensorsDoNotFitError, r"missing: features\.denseblock2\.denselayer3"),
        ({"block_config": [1024] * 9}, TensorsDoNotFitError, "1 to 8 stages"),
        ({"block_config": "22"}, TensorsDoNotFitError, "1 to 8 stages"),
        ({"compression": float("nan")}, TensorsDoNotFitError, "compression"),
        ({"num_classes": 5}, TensorsDoNotFitError, r"classifier.weight has shape \(4, 20\)"),
        ({"num_classes": 0}, TensorsDoNotFitError, r"left over: classifier\.weight, classifier\.bias"),
    ],
)
def test_architectures_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    architecture, tensors = densenet()
    with pytest.raises(error, match=message):
        Engine({**architecture, **changes}, tensors)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, "missing: features.conv0.weight"),
        (np.zeros((10, 3, 3), np.float32), r"has shape \(10, 3, 3\)"),
        (np.zeros((10, 3, 3, 3), np.int64), "is int64, it should be float32"),
        (np.full((10, 3, 3, 3), np.nan, np.float32), "features.conv0.weight is not finite"),
        (np.zeros((10, 3, 3, 3)), "is float64, it should be float32"),
    ],
)
def test_tensors_that_do_not_fit(replacement: Any, message: str) -> None:
    architecture, tensors = densenet()
    if replacement is None:
        del tensors["features.conv0.weight"]
    else:
        tensors["features.conv0.weight"] = replacement
    with pytest.raises(TensorsDoNotFitError, match=message):
        Engine(architecture, tensors)


def test_negative_variances() -> None:
    architecture, tensors = densenet()
    tensors["features.norm5.running_var"][3] = -1
    with pytest.raises(TensorsDoNotFitError, match=r"norm5.running_var has negative variances"):
        Engine(architecture, tensors)


def test_weights_that_overflow_with_their_norm() -> None:
    architecture, tensors = densenet()
    tensors["features.denseblock1.denselayer1.conv1.weight"][:] = 3e38
    tensors["features.denseblock1.denselayer1.norm2.weight"][:] = 5
    with pytest.raises(TensorsDoNotFitError, match="not finite in single precision"):
        Engine(architecture, tensors)


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
    engine = Engine(*densenet())
    for call in (engine.logits, engine.embed, engine.stages):
        with pytest.raises(EngineError, match=message):
            call(np.zeros(shape, np.float32))


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_numbers_of_threads(threads: int) -> None:
    with pytest.raises(EngineError, match="threads must be from 1 to 1024"):
        Engine(*densenet(), threads=threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": 7}, "no such value"),
        ({"output": 0}, "no such value"),
        ({"output": 1, "input": 1}, "nothing has written"),
        ({"input_channel": 1}, "channels outside"),
        ({"output_channel": -1}, "channels outside"),
        ({"weight": np.zeros((2, 3, 2, 2), np.float32)}, "kernel must be odd"),
        ({"bias": np.zeros(3, np.float32)}, "bias of a wrong size"),
        ({"stride": 0}, "stride, dilation or padding"),
        ({"added": 1}, "what is added"),
        ({"added": 0}, "what is added"),
        ({"scale": np.ones(3, np.float32)}, "scale and shift of different sizes"),
        ({"pooled": True}, "only activated 1×1"),
        ({"algorithm": "winograd4"}, "only 3×3 convolutions"),
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
    network.add_convolution(**call)
    with pytest.raises(ValueError, match=message):
        _engine.Engine(network, "", 1)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_models(seed: int) -> None:
    """Random damage to architecture and tensors: an answer or an EngineError, nothing else."""
    random = np.random.default_rng(seed)
    values = [
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
        [2, 2],
        [1, 1, 1],
        True,
        "cifar",
        "pad",
    ]
    refused, answered = 0, 0
    for _ in range(1000):
        architecture, tensors = (densenet, resnet)[int(random.integers(2))]()
        for _ in range(int(random.integers(1, 4))):
            name = str(random.choice(list(tensors)))
            with warnings.catch_warnings():  # of numpy, about the damage done here
                warnings.simplefilter("ignore")
                match int(random.integers(6)):
                    case 0:
                        field = str(random.choice(list(architecture)))
                        architecture[field] = values[int(random.integers(len(values)))]
                    case 1:
                        del tensors[name]
                    case 2:
                        short = tensors[name][..., :-1] if tensors[name].ndim else np.zeros(3, np.float32)
                        tensors[name] = short
                    case 3:
                        if tensors[name].dtype.kind == "f" and tensors[name].size:
                            tensors[name].flat[0] = random.choice([np.nan, np.inf, -1e38, 1e-45, -1.0])
                    case 4:
                        kind = random.choice(["f8", "i4", "f2", "c8", "?"])
                        tensors[name] = tensors[name].astype(kind)
                    case 5:
                        tensors[f"{name}x"] = tensors.pop(name)
        try:
            engine = Engine(architecture, tensors, threads=int(random.integers(1, 3)))
            result = engine.logits(np.ones((int(random.integers(1, 4)), 3, 16, 17), np.float32))
            assert result.ndim == 2
            answered += 1
        except EngineError:
            refused += 1
    assert refused > 10
    assert answered > 0
