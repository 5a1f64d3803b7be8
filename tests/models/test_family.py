"""A family of one's own in one file, pre-activation ResNets, and everything that works with it."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes

import skipnets
from skipnets.cli import main
from skipnets.deploy import export_model
from skipnets.errors import UserError
from skipnets.insight import draw_diagram, explain, largest_batch, reuse, summarize
from skipnets.insight.attribution import stage_names
from skipnets.models import family as families
from skipnets.models import model_config, network_graph, registry
from skipnets.models.accounting import kept_bytes
from skipnets.models.weights import load_weights
from skipnets.training.task import freeze_stages

# isort: off
# [start:config]
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from skipnets.models import Backbone, Family, Graph, GraphBuilder, ModelConfig, register_family
from skipnets.models.backbone import FeatureMapInfo, initialize_convolutions, make_norm
from skipnets.models.registry import Norm


@dataclass(frozen=True, kw_only=True)
class PreActResNetConfig(ModelConfig):
    """A residual network of pre-activation blocks (He et al. 2016, arXiv 1603.05027).

    Args:
        width: Channels of the first stage; every further stage doubles them.
    """

    family: ClassVar[str] = "preact_resnet"

    width: int = 16

    @property
    def smallest_size(self) -> int:
        """Every stride rounds up, so one pixel is enough."""
        return 1


# [end:config]
# isort: on
# [start:module]
class PreActBlock(nn.Module):
    """norm → ReLU → convolution, twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = norm is None
        self.norm1 = make_norm(norm, in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
        self.norm2 = make_norm(norm, out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = self.relu1(self.norm1(x))
        y = self.conv2(self.relu2(self.norm2(self.conv1(activated))))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + y


class PreActResNet(Backbone[PreActResNetConfig]):
    """Stem, stages of pre-activation blocks, a last norm and ReLU, and the head."""

    head_name: ClassVar[str] = "head"

    def __init__(self, config: PreActResNetConfig) -> None:
        super().__init__(config)
        channels = config.width
        self.conv = nn.Conv2d(config.in_chans, channels, 3, padding=1, bias=config.norm is None)
        self.feature_info = [FeatureMapInfo(num_chs=channels, reduction=1, module="conv")]
        for stage, blocks in enumerate(config.block_config):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                out_channels = config.width * 2**stage
                layer.append(PreActBlock(channels, out_channels, stride, config.norm))
                channels = out_channels
            self.add_module(f"layer{stage + 1}", layer)
            info = FeatureMapInfo(num_chs=channels, reduction=2**stage, module=f"layer{stage + 1}")
            self.feature_info.append(info)
        self.norm = make_norm(config.norm, channels)
        self.relu = nn.ReLU()
        self._add_head(channels)
        initialize_convolutions(self)

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """`conv`, `layer1` … `norm`, `relu`, one by one."""
        for name, module in self.named_children():
            if name not in ("global_pool", "head_drop", "head"):
                yield name, module


# [end:module]
# [start:graph]
def preact_graph(config: PreActResNetConfig) -> Graph:
    build, bias = GraphBuilder(name=config.name, in_chans=config.in_chans), config.norm is None
    x = build.stage("conv", build.convolution("conv", 0, config.width, 3, bias=bias))
    for stage, blocks in enumerate(config.block_config):
        with build.scope(f"layer{stage + 1}", "stage"):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                path, channels = f"layer{stage + 1}.{block}", config.width * 2**stage
                with build.scope(path, "residual block"):
                    activated = build.relu(f"{path}.relu1", build.norm(f"{path}.norm1", x, config.norm))
                    y = build.convolution(f"{path}.conv1", activated, channels, 3, stride=stride, bias=bias)
                    y = build.relu(f"{path}.relu2", build.norm(f"{path}.norm2", y, config.norm))
                    y = build.convolution(f"{path}.conv2", y, channels, 3, bias=bias)
                    if channels != build.channels(x):
                        name = f"{path}.shortcut"
                        with build.scope(name, "shortcut"):
                            x = build.convolution(name, activated, channels, 1, stride=stride, bias=bias)
                    x = build.add(path, x, y)
        build.stage(f"layer{stage + 1}", x)
    x = build.stage("norm", build.norm("norm", x, config.norm))
    x = build.stage("relu", build.relu("relu", x))
    return build.finish(
        x,
        head="head",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
    )


# [end:graph]
# [start:record]
PREACT = Family(
    config=PreActResNetConfig,
    models=(
        PreActResNetConfig(name="preact_resnet20", block_config=(3, 3, 3), stem="cifar", num_classes=10),
        PreActResNetConfig(name="preact_resnet56", block_config=(9, 9, 9), stem="cifar", num_classes=10),
    ),
    graph=preact_graph,
    module=lambda: PreActResNet,
    stage="stage",
)


# [end:record]
@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """The family is known while a test of this file runs, and not to others."""
    known = (registry.REGISTRY, registry._CONFIG_CLASSES, families._FAMILIES)
    with patch.dict(known[0]), patch.dict(known[1]), patch.dict(known[2]):
        register_family(PREACT)
        yield


@pytest.fixture
def classifier() -> skipnets.Classifier:
    model = skipnets.create_model("preact_resnet20", width=8, num_classes=3)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 32, 32))
    return skipnets.Classifier.from_model(
        model.eval(), classes=["a", "b", "c"], preprocessing=skipnets.Preprocessing(size=32)
    )


def _images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("fields", [{}, {"norm": "group", "in_chans": 1}, {"norm": None, "num_classes": 0}])
def test_the_graph_is_the_module_s(fields: dict[str, object]) -> None:
    assert_equal_to_the_built_model(model_config("preact_resnet20", **fields))


def test_its_models_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert skipnets.list_models("preact*") == ["preact_resnet20", "preact_resnet56"]
    with pytest.raises(UserError, match="did you mean preact_resnet20"):
        skipnets.create_model("preact_resnet21")
    with pytest.raises(ValueError, match="'preact_resnet' already"):
        register_family(PREACT)
    assert main(["models", "preact*"]) == 0
    assert "preact_resnet56" in capsys.readouterr().out


def test_summary_and_memory() -> None:
    summary = summarize("preact_resnet20")
    parameters = sum(parameter.numel() for parameter in skipnets.create_model("preact_resnet20").parameters())
    assert summary.totals.parameters == parameters
    assert [layer.kind for layer in summary.rows(1)].count("stage") == 3
    assert largest_batch("preact_resnet20", "2GiB", program=0) > 100
    config = model_config("preact_resnet20")
    assert kept_bytes(network_graph(config), (20, 24), 2, "plain") == saved_bytes(config, "plain", 20, 24)


def test_diagram(tmp_path) -> None:
    drawing = draw_diagram(["preact_resnet20", "resnet20"], output=tmp_path / "a.svg").read_text()
    assert "preact_resnet20" in drawing
    assert drawing.count("stage 3") == 2


def test_explain_and_branches(classifier: skipnets.Classifier) -> None:
    assert stage_names(classifier) == ["conv", "layer1", "layer2", "layer3"]
    stages = {}
    for stage in stage_names(classifier):
        ((explanation,),) = explain(classifier, _images(1), stage=stage)
        stages[stage] = explanation.stage
        side = {"layer2": 16, "layer3": 8}.get(stage, 32)
        assert explanation.grid.shape == (side, side)
    # A sum is read through the norm and ReLU of the block that follows.
    assert stages == {
        "conv": "conv",
        "layer1": "layer2.0.relu1",
        "layer2": "layer3.0.relu1",
        "layer3": "relu",
    }
    found = reuse(classifier, _images(2))
    kinds = [block.shortcut for block in found.blocks]
    assert kinds == ["identity"] * 3 + (["projection"] + ["identity"] * 2) * 2


def test_freezing_and_weights(tmp_path, classifier: skipnets.Classifier) -> None:
    model = classifier.model
    assert [type(module) for module in freeze_stages(model, 2)] == [nn.Conv2d, nn.Sequential]
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = skipnets.create_model("preact_resnet20", width=8, num_classes=5, in_chans=1)
    report = load_weights(fresh, tmp_path / "weights.pt")
    assert [change.split(":")[0] for change in report.changes] == [
        "first convolution summed over its input channels",
        "head re-initialized",
    ]


def test_a_file_and_its_exports_predict_the_same_as_the_model(
    tmp_path, classifier: skipnets.Classifier
) -> None:
    path = tmp_path / "model.safetensors"
    classifier.save(path)
    batch = classifier.preprocess(_images(3))
    expected = classifier.logits(batch)
    np.testing.assert_allclose(skipnets.load(path, runtime="torch").logits(batch), expected, rtol=1e-5)
    exported = export_model(path, tmp_path / "model.onnx", file_format="onnx").path
    answers = skipnets.load(exported).predict(_images(3))
    for answer, wanted in zip(answers, classifier.predict(_images(3)), strict=True):
        assert answer.label == wanted.label
        assert answer.probability == pytest.approx(wanted.probability, abs=1e-5)


def test_the_native_engine_runs_it(tmp_path, classifier: skipnets.Classifier) -> None:
    pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    path = tmp_path / "model.safetensors"
    classifier.save(path)
    batch = classifier.preprocess(_images(3))
    native = skipnets.load(path, runtime="native")
    np.testing.assert_allclose(native.logits(batch), classifier.logits(batch), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(native.embed(_images(3)), classifier.embed(_images(3)), rtol=1e-4, atol=1e-5)
