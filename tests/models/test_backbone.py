"""What holds for every model: timm's conventions, tools that take models apart, sizes and dtypes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from captum.attr import LayerGradCam
from tests.helpers.networks import DISTINCT_NETWORKS, EVERY_NETWORK
from torch import nn
from torch.export import Dim

from skipnets.errors import UserError
from skipnets.models import DenseNet, ResNet, build_model, create_model, model_config
from skipnets.models.graph import ExecutionPolicy

SMALL = {
    "densenet121": {"block_config": (2, 2, 2, 2), "growth_rate": 8},
    "densenet40_k12": {"block_config": (2, 2, 2)},
    "densenet_bc40_k12": {"block_config": (2, 2, 2)},
    "resnet18": {"block_config": (1, 1, 1, 1), "width": 8},
    "resnext50_32x4d": {"block_config": (1, 1, 1, 1), "groups": 4},
    "resnet20": {"block_config": (1, 1, 1)},
}


def small_model(name: str, **fields: object) -> DenseNet | ResNet:
    model = create_model(name, **{"num_classes": 5, **SMALL[name], **fields})
    for _ in range(2):
        model(torch.randn(4, model.config.in_chans, 64, 64))
    return model


every_small = pytest.mark.parametrize("name", SMALL)
# Compiled in every run of the tests; the others by the slow ones.
COMPILED = ("densenet_bc40_k12", "resnet18")


@every_small
def test_the_head_is_the_rest_of_forward(name: str) -> None:
    model = small_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))


@every_small
def test_intermediates_have_the_shapes_that_feature_info_promises(name: str) -> None:
    model = small_model(name).eval()
    last, maps = model.forward_intermediates(torch.randn(2, 3, 64, 64))
    assert len(maps) == len(model.feature_info)
    for feature_map, info in zip(maps, model.feature_info, strict=True):
        assert feature_map.shape[1] == info["num_chs"]
        assert feature_map.shape[2] == 64 // info["reduction"]
        assert isinstance(model.get_submodule(info["module"]), nn.Module)
    torch.testing.assert_close(maps[-1], last)


@every_small
def test_intermediates_are_chosen_by_index(name: str) -> None:
    model = small_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    _, every = model.forward_intermediates(x)
    by_index = model.forward_intermediates(x, indices=[0, -2], intermediates_only=True)
    torch.testing.assert_close(by_index, [every[0], every[-2]])
    torch.testing.assert_close(model.forward_intermediates(x, 2, intermediates_only=True), every[-2:])
    seen: list[str] = []
    path = model.feature_info[1]["module"]
    last_stage = model.get_submodule(model.feature_info[-1]["module"])
    last_stage.register_forward_hook(lambda *_: seen.append("last"))
    stopped, _ = model.forward_intermediates(x, [1], stop_early=True)
    torch.testing.assert_close(stopped, every[1], msg=path)
    assert seen == []
    with pytest.raises(UserError, match="must be from 0 to"):
        model.forward_intermediates(x, [9])


@pytest.mark.parametrize("name", ["densenet121", "resnet50"])
def test_feature_info_is_timm_s_where_timm_has_the_model(name: str) -> None:
    theirs = timm.create_model(name).feature_info
    with torch.device("meta"):
        ours = create_model(name).feature_info
    assert [(info["num_chs"], info["reduction"]) for info in ours] == [
        (info["num_chs"], info["reduction"]) for info in theirs
    ]


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("resnet18", "plain"),
        ("resnet18", "linear"),
        ("resnet20", "linear"),
        ("densenet_bc40_k12", "linear"),
        ("regnetx_002", "plain"),
    ],
)
def test_modules_beside_the_stages_do_not_run(name: str, execution: ExecutionPolicy) -> None:
    """A projection, a metric, … that was attached to the model."""
    model = create_model(name, num_classes=5, **SMALL.get(name, {}))
    model.set_block_execution(execution)
    x = torch.randn(2, 3, 64, 64)
    expected = [model(x), *model.forward_intermediates(x, intermediates_only=True)]
    model.proj, model.squash = nn.Linear(512, 128), nn.Softsign()
    found = [model(x), *model.forward_intermediates(x, intermediates_only=True)]
    torch.testing.assert_close(found, expected)
    model.prune_intermediate_layers([0])
    assert isinstance(model.squash, nn.Softsign)
    torch.testing.assert_close(model.forward_features(x), expected[1])


@every_small
def test_a_new_head_keeps_device_dtype_and_mode(name: str) -> None:
    model = small_model(name).eval().to(torch.bfloat16)
    model.reset_classifier(3)
    head = model.get_classifier()
    assert (head.weight.shape, head.weight.dtype, head.training) == (
        (3, model.num_features),
        torch.bfloat16,
        False,
    )
    assert model.num_classes == model.config.num_classes == 3
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)).shape == (2, model.num_features)


def test_one_call_builds_what_tutorials_vary() -> None:
    plain = create_model("resnet34", norm=None, num_classes=1024)
    assert not [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
    assert all(module.bias is not None for module in plain.modules() if isinstance(module, nn.Conv2d))
    assert plain(torch.randn(1, 3, 64, 64)).shape == (1, 1024)
    tiny = create_model("densenet121", block_config=[6, 12, 24, 16], stem="cifar", num_classes=200)
    assert tiny.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (8, 8)
    gray = create_model("densenet_bc40_k12", in_chans=1)
    assert gray(torch.randn(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("norm", ["batch", "group", None])
@every_small
def test_every_norm_trains(name: str, norm: str | None) -> None:
    model = small_model(name, norm=norm, proj_drop_rate=0.2, drop_rate=0.3, drop_path_rate=0.5)
    loss = model(torch.randn(4, 3, 64, 64)).square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@every_small
def test_dropping_rates_act_in_training_only(name: str) -> None:
    model = small_model(name, proj_drop_rate=0.3, drop_rate=0.3, drop_path_rate=0.5)
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    torch.testing.assert_close(model(x), model(x))
    for module in model.modules():  # the norms as in eval mode, so that only dropping makes a difference
        module.train(not isinstance(module, nn.BatchNorm2d))
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "smallest"), [("densenet121", 29), ("densenet_bc40_k12", 4), ("resnet18", 1), ("resnet20", 1)]
)
def test_the_smallest_size_is_right_and_named(name: str, smallest: int) -> None:
    model = small_model(name).eval()
    assert model.config.smallest_size == smallest
    assert model(torch.randn(1, 3, smallest, smallest)).isfinite().all()
    if smallest > 1:
        with pytest.raises(UserError, match=f"images must be at least {smallest}×{smallest}"):
            model(torch.randn(1, 3, smallest - 1, 64))
        with pytest.raises(RuntimeError, match="too small"):  # torch's own word on what we refuse
            nn.Sequential(*[stage for _, stage in model.named_stages()])(torch.randn(1, 3, smallest - 1, 64))


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (3, 64, 64), (2, 64, 64, 3)])
def test_a_wrong_shape_names_the_right_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"must be \(N, 3, H, W\)"):
        small_model("resnet20")(torch.randn(shape))


@every_small
def test_full_backward_hooks_see_every_module(name: str) -> None:
    model = small_model(name)
    seen = set()
    for path, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, path=path: seen.add(path))
    model(torch.randn(2, 3, 64, 64, requires_grad=True)).sum().backward()
    assert {path for path, _ in model.named_modules()} == seen


@pytest.mark.parametrize("execution", ["plain", "linear"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_hooks_on_a_densenet_s_features_see_its_last_map(execution: str, stem: str) -> None:
    """As on torchvision's, whose `features` is a module that runs."""
    torch.manual_seed(0)
    model = create_model("densenet_bc40_k12", block_config=(1, 1), stem=stem).train()
    model.set_block_execution(execution)  # type: ignore[arg-type]
    model(torch.randn(2, 3, 64, 64))  # what is found about the stem is kept, until it changes
    seen: list[torch.Tensor] = []
    model.features.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.features.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = torch.randn(2, 3, 64, 64)
    maps = model.forward_features(x)
    assert len(seen) == 2
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], maps)


@every_small
def test_nothing_a_hook_has_seen_is_changed_afterwards(name: str) -> None:
    model = small_model(name).eval()
    outputs: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, path=path: outputs.append((path, output, output.clone()))
        )
    model(torch.randn(2, 3, 64, 64))
    assert outputs
    for path, output, at_the_time in outputs:
        assert torch.equal(output, at_the_time), path


@every_small
def test_grad_cam_works_on_the_last_stage(name: str) -> None:
    model = small_model(name).eval()
    layer = model.get_submodule(model.feature_info[-1]["module"])
    maps = LayerGradCam(model, layer).attribute(torch.randn(2, 3, 64, 64), target=1)
    assert maps.shape[:2] == (2, 1)
    assert maps.abs().sum() > 0


@every_small
def test_fx_traces_and_the_trace_is_equal(name: str) -> None:
    model = small_model(name).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in COMPILED else pytest.mark.slow) for name in SMALL]
)
def test_compile_gives_equal_outputs_and_gradients(name: str) -> None:
    model = small_model(name)
    compiled_model = copy.deepcopy(model)
    compiled = torch.compile(compiled_model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    expected, actual = model(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (path, ours), theirs in zip(model.named_parameters(), compiled_model.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4, msg=path)


@every_small
def test_export_takes_any_batch_and_size(name: str) -> None:
    model = small_model(name).eval()
    smallest = 64 if isinstance(model, DenseNet) else 33
    height, width = Dim("height", min=smallest, max=512), Dim("width", min=smallest, max=512)
    shapes = {"x": {0: Dim("batch", min=1, max=64), 2: height, 3: width}}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 96),), dynamic_shapes=shapes).module()
    for shape in [(1, 3, smallest, smallest), (3, 3, 97, 71)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@every_small
def test_copies_pickles_and_layouts_are_equal(name: str) -> None:
    model = small_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = build_model(model.config).eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(fresh(x), expected)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


@every_small
def test_autocast_stays_near(name: str) -> None:
    model = small_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    expected = model(x)
    assert (half.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.05


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_every_model_computes_shapes_on_the_meta_device(name: str) -> None:
    config = model_config(name)
    size = 224 if config.stem == "imagenet" else 32
    with torch.device("meta"):
        model = build_model(config)
        logits = model(torch.empty(2, 3, size, size))
    assert logits.shape == (2, config.num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DISTINCT_NETWORKS if name != "resnet1202"])
def test_every_model_exports_traces_and_compiles(name: str) -> None:
    model = create_model(name, num_classes=4)
    size = 64 if model.config.stem == "imagenet" else 32
    model(torch.randn(2, 3, size, size))
    model.eval()
    x = torch.randn(2, 3, size, size)
    expected = model(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    shapes = {"x": {0: Dim("batch", min=1, max=64)}}
    torch.testing.assert_close(
        torch.export.export(model, (x,), dynamic_shapes=shapes).module()(x), expected, rtol=1e-4, atol=1e-5
    )
    torch.compiler.reset()  # the models share code, of which a process compiles only so many variants
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
