"""Networks of signals (1 axis) and volumes (3) against MONAI's, and their graphs, costs and executions."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torchinfo
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes
from tests.helpers.monai_networks import MonaiDenseNet, MonaiResNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipnets.errors import UserError
from skipnets.models import create_model, list_models, model_config, network_graph
from skipnets.models.accounting import kept_bytes, macs
from skipnets.models.backbone import Backbone
from skipnets.models.family import family_of
from skipnets.models.graph import BlockExecution
from skipnets.models.layers import CellMean
from skipnets.models.weights import load_weights
from skipnets.models.weights.checkpoint import Checkpoint
from skipnets.ops import chunks

SIZES = {1: (70,), 2: (33, 36), 3: (14, 17, 15)}
DENSE: dict[str, Any] = {"block_config": (2, 1, 2), "growth_rate": 4, "bottleneck": 2}
RESIDUAL: dict[str, Any] = {"block_config": (1, 2, 1), "width": 4, "stem": "stride1"}
# A network of each kind of stem, block, shortcut, attention and anti-aliasing.
KINDS = (
    *("densenet40_k12", "densenet_bc40_k12", "densenetblur121d", "densenet264d"),
    *("resnet20", "resnet8_w16", "resnet10t", "resnet34d", "wide_resnet50_2", "seresnext50_32x4d"),
    *("ecaresnet50t", "resnetblur50", "resnetaa34d", "resnetrs50"),
)


def densenet(dims: int, **fields: Any) -> Backbone[Any]:
    return create_model("densenet121", dims=dims, in_chans=2, num_classes=3, **{**DENSE, **fields}).double()


def monai_densenet(dims: int) -> MonaiDenseNet:
    return MonaiDenseNet(dims, 2, 3, init=8, growth=4, blocks=(2, 1, 2), bottleneck=2)


def volumes(dims: int, count: int = 3) -> Tensor:
    return torch.randn(count, 2, *SIZES[dims], dtype=torch.double)


def disturbed(network: nn.Module) -> nn.Module:
    """In double precision, with no tensor at its initial value."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.2 * torch.rand_like(tensor)
    return network.double()


def loaded(ours: Backbone[Any], theirs: nn.Module) -> Any:
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    return load_weights(ours, Checkpoint(source="theirs.pt", tensors=tensors, ordered=True))


def trained(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradient of the input, gradients and buffers after a step in train mode."""
    x = x.clone().requires_grad_()
    output = network.train()(x)
    output.square().sum().backward()
    gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    assert x.grad is not None
    return output.detach(), x.grad, gradients, dict(network.named_buffers())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_densenet_is_monai_s(dims: int) -> None:
    theirs, ours = disturbed(monai_densenet(dims)), densenet(dims)
    report = loaded(ours, theirs)
    assert report.layout == "named as in MONAI's DenseNets"
    x = volumes(dims)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    found, expected = trained(ours, x), trained(theirs, x)
    torch.testing.assert_close(found[:2], expected[:2])
    for mine, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close({report.mapping[name]: each for name, each in mine.items()}, other)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("dims", [1, 3])
def test_a_resnet_is_monai_s_whose_biases_before_norms_go_into_running_means(
    dims: int, bottleneck: bool
) -> None:
    theirs = disturbed(MonaiResNet(dims, 2, 3, width=4, blocks=(1, 2, 1), bottleneck=bottleneck))
    block = "bottleneck" if bottleneck else "basic"
    fields = {"dims": dims, "in_chans": 2, "num_classes": 3, "block": block, **RESIDUAL}
    ours = create_model("resnet50", **fields).double()
    report = loaded(ours, theirs)
    assert "layer2.0.downsample.0.bias" in report.notes[-1]
    other = create_model("resnet50", **{**fields, "stem": "imagenet"})
    assert 'whose ResNets have stem="stride1" unless' in loaded(other, theirs).notes[-1]
    x = volumes(dims)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    biases = {name: bias for name, bias in theirs.named_parameters() if name.endswith("downsample.0.bias")}
    found, expected = trained(ours, x), trained(theirs, x)
    torch.testing.assert_close(found[:2], expected[:2])
    gradients = {name: each for name, each in expected[2].items() if name not in biases}
    torch.testing.assert_close(found[2], gradients)
    for name, bias in biases.items():
        found[3][f"{name.removesuffix('0.bias')}1.running_mean"] += bias.detach()
    torch.testing.assert_close(found[3], expected[3])


@pytest.mark.parametrize("dims", [1, 3])
def test_the_stand_ins_are_monai(dims: int) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    x = volumes(dims)
    real = nets.DenseNet(
        spatial_dims=dims, in_channels=2, out_channels=3, init_features=8, growth_rate=4,
        block_config=(2, 1, 2), bn_size=2,
    )  # fmt: skip
    pairs = [(real, monai_densenet(dims))]
    for kind in ("basic", "bottleneck"):
        real = nets.ResNet(kind, [1, 2, 1, 1], [4, 8, 16, 32], dims, n_input_channels=2, num_classes=3)
        bottleneck = kind == "bottleneck"
        pairs.append((real, MonaiResNet(dims, 2, 3, width=4, blocks=(1, 2, 1, 1), bottleneck=bottleneck)))
    for real, stand_in in pairs:
        stand_in.load_state_dict(disturbed(real).state_dict())
        torch.testing.assert_close(trained(stand_in.double(), x)[0], trained(real, x)[0])


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks even for small maps."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(
    ("dims", "fields", "execution"),
    [
        (1, {}, "linear"),
        (3, {}, "linear"),
        (3, {}, "linear-recompute"),
        (1, {"bottleneck": None, "stem": "small"}, "linear"),
        (3, {"bottleneck": None, "stem": "small", "block_config": (2, 1)}, "linear-recompute"),
    ],
)
def test_a_densenet_in_linear_memory_computes_the_same(
    dims: int, fields: dict[str, Any], execution: BlockExecution
) -> None:
    plain = disturbed(densenet(dims, **fields))
    linear = copy.deepcopy(plain)
    linear.set_block_execution(execution)  # type: ignore[operator]
    x = volumes(dims)
    found, expected = trained(linear, x), trained(plain, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert set(linear.block_execution_report().values()) == {execution}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("dims", "fields"),
    [
        (1, {"block": "basic", "shortcut": "pad", "stem": "cifar"}),
        (3, {"block": "basic", "shortcut": "pad"}),
        (3, {}),
        (3, {"stem": "imagenet", "stride_in": "1x1"}),
    ],
)
def test_a_resnet_in_linear_memory_computes_the_same(dims: int, fields: dict[str, Any]) -> None:
    options = {**RESIDUAL, **fields}
    plain = disturbed(create_model("resnet50", dims=dims, in_chans=2, num_classes=3, **options))
    linear = copy.deepcopy(plain)
    linear.set_block_execution("linear")  # type: ignore[operator]
    x = volumes(dims)
    torch.testing.assert_close(trained(linear, x), trained(plain, x), rtol=1e-9, atol=1e-10)
    assert set(linear.block_execution_report().values()) == {"linear"}  # type: ignore[operator]


def small_config(name: str, dims: int) -> Any:
    """A network's with few and narrow layers."""
    dense = {"growth_rate": 4, "block_config": (1, 2)}
    groups = 32 if "next" in name else 1
    fields = dense if name.startswith("dense") else {"width": 64 if groups > 1 else 8, "block_config": (1, 2)}
    return model_config(name, dims=dims, in_chans=1, num_classes=2, **fields)


@pytest.mark.parametrize("dims", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", KINDS)
def test_the_graph_is_the_network(name: str, dims: int) -> None:
    config = small_config(name, dims)
    assert_equal_to_the_built_model(config)
    graph, size = network_graph(config), SIZES[dims]
    with torch.device("meta"):
        model = family_of(config).module()(config).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 1, *size))
    assert graph.parameter_count() == torchinfo.summary(model, verbose=0).total_params
    assert 2 * sum(macs(graph, size)) == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 3])
def test_every_densenet_and_resnet_takes_it(dims: int) -> None:
    names = [name for name in list_models() if model_config(name).family in ("densenet", "resnet")]
    assert len(names) > 100
    for name in names:
        if name != "resnet1202":
            assert_equal_to_the_built_model(model_config(name, dims=dims))


@pytest.mark.parametrize(
    ("name", "dims"),
    [("densenet121", 1), ("densenet121", 3), ("resnet18", 3), ("resnetblur50", 3), ("resnetaa34d", 1)],
)
def test_what_is_saved_for_the_backward_pass_is_what_is_told(name: str, dims: int) -> None:
    config = small_config(name, dims)
    size = {1: (70,), 3: (18, 21, 17)}[dims]
    for execution in family_of(config).executions:
        told = kept_bytes(network_graph(config), size, 2, execution)
        assert told == saved_bytes(config, execution, *size), execution
    assert told < 0.7 * kept_bytes(network_graph(config), size, 2, "plain") or "res" in name


def test_what_does_not_fit_is_said_in_one_line() -> None:
    for name, dims, message in (
        ("regnety_002", 3, "dims=3: must be 2 for regnety_002: it takes images alone"),
        ("rdnet_tiny", 1, "dims=1: must be 2 for rdnet_tiny: it takes images alone"),
        ("resnet18", 4, "dims=4: must be 1, 2 or 3"),
        ("densenet121", True, "dims=True: must be 1, 2 or 3"),
    ):
        with pytest.raises(UserError) as raised:
            create_model(name, dims=dims)
        assert str(raised.value) == message
    with pytest.raises(UserError, match=r"weights=imagenet: are of images; for dims=3 they must be a file"):
        create_model("resnet18", pretrained=True, dims=3)
    model = create_model("densenet121", dims=3, in_chans=1, num_classes=2, **DENSE)
    with pytest.raises(UserError, match=r"must be \(N, 1, D, H, W\), not \(1, 1, 32, 32\)"):
        model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match=r"volumes must be at least 13×13×13 for this network, not 12×32×32"):
        model(torch.zeros(1, 1, 12, 32, 32))


def test_weights_of_another_number_of_axes_are_named(tmp_path: Path) -> None:
    torch.save(monai_densenet(3).state_dict(), tmp_path / "monai.pt")
    with pytest.raises(UserError, match=r"the weights are for dims=3$"):
        create_model("densenet121", in_chans=2, num_classes=3, weights=tmp_path / "monai.pt", **DENSE)
    model = create_model(
        "densenet121", dims=3, in_chans=1, num_classes=5, weights=tmp_path / "monai.pt", **DENSE
    )
    assert model.weights_report is not None
    assert [change[:10] for change in model.weights_report.changes] == ["first conv", "head re-in"]


def test_maps_and_heads_have_the_axes_of_the_input() -> None:
    model = create_model("densenet121", dims=3, in_chans=1, num_classes=0, features_only=True, **DENSE).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 1, 32, 32, 40))
    reductions = model.feature_info.reduction()
    assert [each.shape[2:] for each in maps] == [(32 // by, 32 // by, 40 // by) for by in reductions]
    for pool in ("max", "avgmax", "catavgmax"):
        made = create_model("resnet18", dims=1, num_classes=0, global_pool=pool, width=4, block_config=(1,))
        assert made.eval()(torch.zeros(2, 3, 64)).shape == (2, made.head_hidden_size)
    assert model.default_cfg["input_size"] == (1, 96, 96, 96)


@pytest.mark.parametrize("size", [(1, 2, 1), (1, 1, 1), (3, 1, 4), (3, 2, 5)])
def test_means_of_cells_are_those_of_what_lies_inside(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    found = CellMean(dims=3)(x)
    cells = [[slice(2 * index, 2 * index + 2) for index in range(-(-side // 2))] for side in size]
    for place in itertools.product(*(range(len(each)) for each in cells)):
        inside = x[(..., *(cells[axis][index] for axis, index in enumerate(place)))]
        torch.testing.assert_close(found[(..., *place)], inside.mean((2, 3, 4)))
    assert torch.equal(torch.fx.symbolic_trace(CellMean(dims=3))(x), found)
