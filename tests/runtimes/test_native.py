"""The native engine against torch in float64, and what "auto" makes of it."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.networks import CLASSIC, SMALL_RDNET
from torch import nn

import skipnets
from skipnets.errors import UserError
from skipnets.models import create_model, network_graph
from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import REGISTRY, config_to_dict, list_models
from skipnets.runtimes import TensorsDoNotFitError, open_runtime
from skipnets.runtimes.native import NativeRuntime, NotForTheEngineError

skipnets_engine = pytest.importorskip(
    "skipnets_engine", reason="needs the native engine: pip install ./engine"
)
from skipnets_engine.graph import check_graph  # noqa: E402
from skipnets_engine.tensors import tensor_shapes  # noqa: E402

SMALL = {"growth_rate": 4, "block_config": (2, 2), "num_classes": 5}


def trained_on_noise(name: str, size: tuple[int, int], **fields: Any) -> Any:
    """A model whose norms have seen something."""
    model = create_model(name, **fields)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, model.config.in_chans, *size))
    return model.eval()


def tensors_of(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def engine_of(model: Any, **options: Any) -> Any:
    return skipnets_engine.Engine(network_graph(model.config), tensors_of(model), **options)


def relative_error(mine: Any, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(mine - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


def check_against_torch(
    name: str, size: tuple[int, int], *, count: int, times: float = 2.0, **fields: Any
) -> None:
    """Logits, features and every stage, at most 1e-5 from float64, or `times` as far as torch's float32.

    (Deep residual networks with random weights magnify the rounding of a single product so much that torch
    itself misses 1e-5.)
    """
    model = trained_on_noise(name, size, **fields)
    batch = torch.randn(count, model.config.in_chans, *size)
    exact = copy.deepcopy(model).double()
    engine = engine_of(model, threads=2)
    found = engine.stages(batch.numpy())
    assert {info["module"] for info in model.feature_info} <= set(found)
    singles, doubles = outputs_of(model, batch, found), outputs_of(exact, batch.double(), found)
    found |= {"embed": engine.embed(batch.numpy()), "logits": engine.logits(batch.numpy())}
    for path, mine in found.items():
        single, double = singles[path], doubles[path]
        assert relative_error(mine, double) <= max(1e-5, times * relative_error(single.numpy(), double)), path


def outputs_of(model: Any, batch: torch.Tensor, paths: Iterable[str]) -> dict[str, torch.Tensor]:
    """What the modules at these paths, the pooling and the whole network give."""
    outputs: dict[str, torch.Tensor] = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: outputs.update({path: output.clone()})
        )
    with torch.no_grad():
        outputs["embed"] = model.forward_head(model.forward_features(batch), pre_logits=True)
        outputs["logits"] = model(batch)
    return outputs


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("densenet121", (64, 64), {"block_config": (2, 3, 3, 2)}),
        ("densenet121", (65, 47), {**SMALL, "in_chans": 1}),
        ("densenet121", (37, 41), {**SMALL, "growth_rate": 5, "bottleneck": 3, "compression": 0.37}),
        ("densenet121", (33, 33), {**SMALL, "bottleneck": None}),
        ("densenet121", (40, 40), {**SMALL, "norm": None}),
        ("densenet121", (40, 40), {**SMALL, "proj_drop_rate": 0.2, "drop_path_rate": 0.1}),
        ("densenet121", (40, 40), {"block_config": (1,), "num_classes": 0}),
        ("densenet40_k12", (32, 32), {"block_config": (3, 3, 3)}),
        ("densenet_bc100_k12", (32, 32), {}),
        ("densenet_bc40_k48", (17, 19), {"block_config": (2, 2, 2)}),
        ("resnet20", (32, 32), {}),
        ("resnet20", (31, 33), {"shortcut": "projection", "in_chans": 1}),
        ("resnet18", (64, 64), {}),
        (
            "resnet18",
            (64, 64),
            {"norm": None, "block_config": (1, 1), "drop_rate": 0.2, "proj_drop_rate": 0.2},
        ),
        ("resnet34", (45, 1), {"block_config": (1, 1, 1, 1), "num_classes": 3}),
        ("resnet50", (64, 64), {"block_config": (2, 2, 2, 2)}),
        ("resnet50", (40, 56), {"block_config": (1, 2, 2), "output_stride": 8}),
        ("resnet50", (64, 64), {"block_config": (1, 1, 1), "shortcut": "pad", "width": 20}),
        ("resnext50_32x4d", (48, 48), {"block_config": (1, 1, 1, 1)}),
        ("resnext50_32x4d", (32, 32), {"block_config": (1, 1), "groups": 3, "width_per_group": 20}),
        ("wide_resnet50_2", (48, 48), {"block_config": (1, 1, 1, 1)}),
        ("densenet121", (40, 40), {**SMALL, "norm": "group", "activation": "silu"}),
        ("densenet121", (40, 40), {**SMALL, "norm": "layer2d", "activation": "gelu"}),
        ("densenet121", (41, 40), {**SMALL, "norm": "instance", "global_pool": "catavgmax"}),
        ("densenet121", (41, 40), {**SMALL, "norm": "filter-response"}),
        ("resnet18", (33, 33), {"norm": "evonorm-s0", "block_config": (1, 1)}),
        ("densenetblur121d", (41, 43), SMALL),
        ("resnet18", (33, 33), {"activation": "hard_swish", "block_config": (1, 1), "global_pool": "avgmax"}),
        ("resnet26d", (47, 33), {"block_config": (1, 1, 1), "global_pool": "max"}),
        ("resnetaa50", (47, 33), {"block_config": (1, 1, 1)}),
        ("resnetblur18", (47, 33), {"block_config": (1, 1, 1)}),
        ("resnetrs50", (47, 33), {"block_config": (1, 1, 1)}),
        ("seresnet50", (47, 33), {"block_config": (1, 1, 1)}),
        ("ecaresnet26t", (47, 33), {"block_config": (1, 1, 1)}),
        ("regnety_002", (47, 33), {"block_config": (1, 1, 1, 1)}),
        ("regnetx_006", (47, 33), {"block_config": (1, 1, 1, 1)}),
        ("rdnet_tiny", (47, 65), {**SMALL_RDNET, "layer_scale": 1.0}),
        ("resnetv2_50", (48, 48), {"block_config": (1, 2, 1), "width": 32}),
        ("resnetv2_18", (33, 40), {"block_config": (2, 1), "stem": "small"}),
        ("resnetv2_50x1_bit", (33, 40), {"block_config": (1, 1, 1), "width": 16}),
    ],
)
def test_agrees_with_torch(name: str, size: tuple[int, int], fields: dict[str, Any]) -> None:
    # Two threads take an image each and then the third together.
    check_against_torch(name, size, count=3, **fields)


# The same code as others, with more than 400 MB of weights; here they are in memory seven times.
_HUGE = {
    "regnety_320",
    "regnety_640",
    "regnety_1280",
    "regnety_2560",
    "resnext101_32x16d",
    "resnext101_32x32d",
}
_HUGE |= {"resnetv2_50x3_bit", "resnetv2_101x3_bit", "resnetv2_152x2_bit", "resnetv2_152x4_bit"}
_HUGE |= {"regnetx_320", "resnetrs270", "resnetrs350", "resnetrs420", "seresnet269d", "ecaresnet269d"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name not in _HUGE])
def test_every_registry_architecture_agrees_with_torch(name: str) -> None:
    side = 32 if REGISTRY[name].stem in ("cifar", "small") else 96
    # Winograd's transforms round more than torch's convolutions do: over a hundred layers of random weights
    # errors are up to 2.6 times torch's. Those of the first networks stayed below twice, which is held.
    check_against_torch(name, (side, side), count=1, times=2.0 if name in CLASSIC else 3.0)


def test_every_registry_architecture_is_known() -> None:
    """Its operations, and which tensors they have."""
    for name in list_models():
        graph = network_graph(REGISTRY[name])
        check_graph(graph)
        known = {
            name: shape for operation in graph.operations for name, shape in tensor_shapes(operation).items()
        }
        counters = {name for name in graph.tensors() if name.endswith("num_batches_tracked")}
        assert known == {name: shape for name, shape in graph.tensors().items() if name not in counters}


class PreActivationNet(nn.Module):
    """A residual network whose norms and ReLUs come first (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2, bias=False)
        self.norm3 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=2, dilation=2, bias=False)
        self.norm4, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.stem(images)).relu()
        x = self.shortcut(x) + self.conv2(self.norm2(self.conv1(x)).relu())
        x = x + self.conv3(self.norm3(x).relu())
        return self.head(self.norm4(x).relu().mean((2, 3)))

    def graph(self) -> Graph:
        build = GraphBuilder(name="pre-activation", in_chans=3)
        x = build.convolution("stem", 0, 8, 3, bias=True)
        x = build.relu("relu1", build.norm("norm1", x, "batch"))
        y = build.convolution("conv1", x, 12, 3, stride=2)
        y = build.convolution("conv2", build.relu("relu2", build.norm("norm2", y, "batch")), 12, 3, groups=3)
        x = build.stage("block1", build.add("block1", build.convolution("shortcut", x, 12, 1, stride=2), y))
        y = build.relu("relu3", build.norm("norm3", x, "batch"))
        x = build.stage("block2", build.add("block2", x, build.convolution("conv3", y, 12, 3, dilation=2)))
        x = build.relu("relu4", build.norm("norm4", x, "batch"))
        return build.finish(x, head="head", global_pool="avg", num_classes=4, drop_rate=0.1)


def test_a_graph_of_no_family_runs() -> None:
    model = PreActivationNet().train()
    images = torch.randn(3, 3, 21, 18)
    with torch.no_grad():
        model(images)  # the norms have seen something
        exact = model.eval().double()(images.double())
    engine = skipnets_engine.Engine(model.graph(), tensors_of(model.float()), threads=2)
    assert relative_error(engine.logits(images.numpy()), exact) <= 1e-5
    assert set(engine.stages(images.numpy())) == {"block1", "block2"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's file."""
    torch.manual_seed(0)
    model = trained_on_noise("densenet_bc40_k12", (32, 32), num_classes=3)
    preprocessing = skipnets.Preprocessing(size=32)
    path = tmp_path_factory.mktemp("native") / "model.safetensors"
    skipnets.Classifier.from_model(model, classes=["a", "b", "c"], preprocessing=preprocessing).save(path)
    return path


def test_auto_takes_it_and_torch_agrees(saved: Path) -> None:
    native, in_torch = skipnets.load(saved), skipnets.load(saved, runtime="torch", device="cpu")
    assert (native.runtime.name, native.runtime.device) == ("native", "cpu")
    batch = np.random.default_rng(0).standard_normal((7, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(native.logits(batch), in_torch.logits(batch), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        native.runtime.embed(batch), in_torch.runtime.embed(batch), rtol=1e-4, atol=1e-5
    )


def test_predicts_without_importing_torch(saved: Path) -> None:
    program = (
        "import sys, skipnets, numpy as np\n"
        f"clf = skipnets.load({str(saved)!r})\n"
        "image = np.zeros((40, 30, 3), np.uint8)\n"
        "assert clf.predict([image])[0].label in 'abc'\n"
        "assert clf.runtime.name == 'native'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_pool": "", "num_classes": 0}, "needs pooled features"),
    ],
)
def test_unknown_architectures_fall_back_with_a_notice(
    fields: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_model("densenet_bc40_k12", **SMALL | fields)
    given: dict[str, Any] = {
        "architecture": config_to_dict(model.config),
        "tensors": tensors_of(model),
        "device": "cpu",
    }
    with pytest.raises(NotForTheEngineError, match=f"densenet_bc40_k12: .*{message}"):
        open_runtime("native", **given)
    with caplog.at_level(logging.WARNING, logger="skipnets"):
        assert open_runtime("auto", **given).name == "torch"
    assert "running in PyTorch: densenet_bc40_k12" in caplog.text


def test_another_interface_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipnets_engine, "INTERFACE", 99)
    model = create_model("densenet_bc40_k12", **SMALL)
    given: dict[str, Any] = {
        "architecture": config_to_dict(model.config),
        "tensors": tensors_of(model),
        "device": "cpu",
    }
    with pytest.raises(UserError, match=r"does not match this skipnets \(interface 99, not 2\)"):
        open_runtime("native", **given)
    assert open_runtime("auto", **given).name == "torch"


def test_bad_input_is_named() -> None:
    model = trained_on_noise("densenet121", (64, 64), **SMALL)
    architecture, tensors = config_to_dict(model.config), tensors_of(model)
    with pytest.raises(UserError, match="device=cuda: must be auto or cpu"):
        open_runtime("native", architecture=architecture, tensors=tensors, device="cuda")
    runtime = NativeRuntime.from_tensors(architecture, tensors)
    with pytest.raises(UserError, match="images of 3×3 are too small"):
        runtime.logits(np.zeros((1, 3, 3, 3), np.float32))
    del tensors["features.norm5.weight"]
    for kind in ("native", "auto"):
        with pytest.raises(TensorsDoNotFitError, match=r"missing: features\.norm5\.weight"):
            open_runtime(kind, architecture=architecture, tensors=tensors, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_times_of_a_plan_are_the_engines(batch_size: int) -> None:
    """Which alone knows how it divides a batch."""

    class Engine:
        isa, threads = "baseline", 4

        def plan(self, size: tuple[int, int], *, images: int, rounds: int) -> list[dict[str, Any]]:
            assert (size, images, rounds) == ((8, 9), batch_size, 2)
            return [{"macs": 6e6, "seconds": 0.5}]

    report = NativeRuntime(Engine()).plan((8, 9), batch_size=batch_size, rounds=2)
    (step,) = report["steps"]
    assert step["seconds"] == 0.5
    assert step["share_of_peak"] == pytest.approx(12e6 / report["peak_macs"])


def test_the_plan_is_printed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from skipnets.cli import main

    assert main(["plan", str(saved), "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "features.denseblock1.denselayer1.conv1" in printed
    assert "algorithm" in printed  # in the heading
    assert main(["plan", str(saved), "--json", "--batch-size", "3", "--rounds", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"isa", "threads", "peak_macs", "steps"} == set(report)
    assert main(["plan", str(saved), "--rounds", "0"]) == 2
