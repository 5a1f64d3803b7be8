"""timm's interface, compared with the installed timm: names, arguments, defaults, results."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import pytest
import timm
import timm.data
import timm.optim
import torch
import torchvision
from timm.models import FeatureListNet as TimmFeatureListNet
from timm.models import group_parameters
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import skipnets
from skipnets.errors import UserError
from skipnets.models import create_model, list_models
from skipnets.models.weights.checkpoint import Checkpoint

every_name = pytest.mark.parametrize("name", ["densenet121", "resnet50"])


def pair(name: str, **options: Any) -> tuple[nn.Module, Any]:
    """timm's model and ours in eval mode, with the same random weights and lived-in running statistics."""
    theirs, ours = timm.create_model(name, **options), create_model(name, **options)
    theirs(torch.randn(4, options.get("in_chans", 3), 64, 64))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 96)


@pytest.mark.parametrize(
    "method",
    [
        "forward_features",
        "forward_head",
        "forward_intermediates",
        "get_classifier",
        "group_matcher",
        "prune_intermediate_layers",
        "reset_classifier",
        "set_grad_checkpointing",
    ],
)
@every_name
def test_methods_take_the_same_arguments(name: str, method: str) -> None:
    with torch.device("meta"):
        models = timm.create_model(name), create_model(name)
    theirs, ours = (inspect.signature(getattr(model, method)).parameters.values() for model in models)
    ours_by_name = [(argument.name, argument.default, argument.kind) for argument in ours]
    # The one argument that only timm's ResNet has, and nothing calls it with.
    expected = [
        (argument.name, argument.default, argument.kind)
        for argument in theirs
        if argument.name != "name_only"
    ]
    assert ours_by_name == expected


@every_name
def test_attributes_are_equal(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, in_chans=4), create_model(name, in_chans=4)
    for attribute in ("num_features", "head_hidden_size", "num_classes", "in_chans"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.global_pool.pool_type == theirs.global_pool.pool_type
    for key in ("architecture", "input_size", "mean", "std", "num_classes", "first_conv", "classifier"):
        expected = (4, 224, 224) if key == "input_size" else theirs.pretrained_cfg[key]
        if key in ("mean", "std"):  # timm leaves three numbers to four channels
            expected = (*expected, expected[0])
        assert ours.pretrained_cfg[key] == ours.default_cfg[key] == expected, key


def test_the_preparation_of_images_is_that_of_the_weights() -> None:
    model = create_model("resnet20", num_classes=0)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"]) == ((3, 32, 32), 1.0)
    assert timm.data.resolve_model_data_config(create_model("resnet18"))["crop_pct"] == 224 / 256


@every_name
def test_drop_rates_are_where_timm_has_them(name: str) -> None:
    theirs = timm.create_model(name, drop_rate=0.3)
    ours = create_model(name, drop_rate=0.3, proj_drop_rate=0.2)
    if name == "resnet50":
        assert theirs.drop_rate == 0.3
    else:
        assert theirs.head_drop.p == 0.3
    assert ours.head_drop.p == 0.3
    dropouts = {
        module.p
        for path, module in ours.named_modules()
        if isinstance(module, nn.Dropout) and path != "head_drop"
    }
    assert dropouts == {0.2}
    if name == "densenet121":
        layer = timm.create_model(name, proj_drop_rate=0.2).features.denseblock1.denselayer1
        assert layer.drop_rate == 0.2


@every_name
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_every_pooling_gives_the_same(name: str, pool: str) -> None:
    theirs, ours = pair(name, num_classes=7, global_pool=pool)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        maps = theirs.forward_features(x)
        for pre_logits in (False, True):
            torch.testing.assert_close(
                ours.forward_head(maps, pre_logits), theirs.forward_head(maps, pre_logits)
            )
    assert ours.head_hidden_size == theirs.head_hidden_size


@every_name
def test_a_head_is_reset_alike(name: str) -> None:
    theirs, ours = pair(name)
    x = images()
    for arguments in [(5,), (0,), (0, ""), (6, "max"), (6, "catavgmax"), (3, "avg")]:
        for model in (theirs, ours):
            model.reset_classifier(*arguments)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), msg=str(arguments))
        assert (ours.head_hidden_size, ours.num_classes) == (theirs.head_hidden_size, arguments[0])
    assert (ours.config.num_classes, ours.config.global_pool) == (3, "avg")


def test_a_linear_layer_needs_pooled_features() -> None:
    with pytest.raises(UserError, match='global_pool="": needs num_classes=0, not 4'):
        create_model("resnet18").reset_classifier(4, "")
    model = create_model("resnet18", num_classes=4, width=8)
    with pytest.raises(UserError, match="global_pool='mean': must be one of 'avg', 'max'"):
        model.reset_classifier(4, "mean")
    assert (model.config.global_pool, model.get_classifier().out_features) == ("avg", 4)


@every_name
@pytest.mark.parametrize("indices", [None, 1, 3, [0, -1], (3, 1), [-2]])
def test_intermediates_are_equal(name: str, indices: Any) -> None:
    theirs, ours = pair(name, num_classes=0)
    x = images()
    with torch.no_grad():
        for stop_early in (False, True):
            expected, actual = (
                model.forward_intermediates(x, indices, False, stop_early, "NCHW") for model in (theirs, ours)
            )
            torch.testing.assert_close(actual[1], expected[1])
            if not stop_early:
                torch.testing.assert_close(actual[0], expected[0])
        expected, actual = (
            model.forward_intermediates(x, indices, intermediates_only=True) for model in (theirs, ours)
        )
        torch.testing.assert_close(actual, expected)


def test_wrong_indices_list_the_valid_ones() -> None:
    model = create_model("resnet18", width=8)
    for indices in (0, 6, [5], [-6], []):
        with pytest.raises(UserError, match=r"^indices=.*: must be from 0 to 4, the maps of resnet18$"):
            model.forward_intermediates(images(), indices)
    with pytest.raises(UserError, match=r'^output_fmt="NLC": must be "NCHW"$'):
        model.forward_intermediates(images(), output_fmt="NLC")


@every_name
@pytest.mark.parametrize("out_indices", [None, (1, 2, 3), (0, 4), 2])
def test_feature_extractors_are_equal(name: str, out_indices: Any) -> None:
    whole, _ = pair(name, in_chans=4)
    chosen = {} if out_indices is None else {"out_indices": out_indices}
    theirs, ours = (
        create(name, in_chans=4, features_only=True, **chosen)
        for create in (timm.create_model, skipnets.create_model)
    )
    theirs.load_state_dict(
        {key.replace("features.", "features_", 1): value for key, value in whole.state_dict().items()},
        strict=False,
    )
    assert not ours.model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    x = images(4)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    for info in ("channels", "reduction"):
        assert getattr(ours.feature_info, info)() == getattr(theirs.feature_info, info)()
        assert getattr(ours.feature_info, info)(1) == getattr(theirs.feature_info, info)(1)
        assert getattr(ours.feature_info, info)([0, 2]) == getattr(theirs.feature_info, info)([0, 2])
    keys = ["num_chs", "reduction", "index"]
    assert ours.feature_info.get_dicts(keys=keys) == theirs.feature_info.get_dicts(keys=keys)
    assert ours.feature_info.get_dicts(keys, 3) == theirs.feature_info.get_dicts(keys, 3)
    assert len(ours.feature_info) == len(theirs.feature_info)
    for path in ours.feature_info.module_name():
        ours.model.get_submodule(path)
    assert [ours.feature_info[i]["module"] for i in range(5)] == ours.feature_info.get("module", range(5))
    assert (ours.output_fmt, ours.in_chans) == (theirs.output_fmt, theirs.in_chans)
    assert "classifier" not in ours.pretrained_cfg
    assert "classifier" not in theirs.pretrained_cfg
    assert {path for path, _ in ours.named_parameters()} == {
        f"model.{path.replace('features_', 'features.', 1)}" for path, _ in theirs.named_parameters()
    }


@every_name
def test_timm_can_extract_features_from_our_models(name: str) -> None:
    _, ours = pair(name)
    x = images()
    with torch.no_grad():
        expected = ours.forward_intermediates(x, intermediates_only=True)
        extractor = TimmFeatureListNet(ours, flatten_sequential=name == "densenet121")
        torch.testing.assert_close(extractor(x), expected)


@every_name
@pytest.mark.parametrize("indices", [1, (1, 2), (0,), [-2]])
def test_pruned_models_are_equal(name: str, indices: Any) -> None:
    theirs, ours = pair(name)
    kept = [model.prune_intermediate_layers(indices) for model in (theirs, ours)]
    assert kept[0] == kept[1]
    x = images()
    with torch.no_grad():
        expected, actual = (
            model.forward_intermediates(x, kept[0], intermediates_only=True) for model in (theirs, ours)
        )
    torch.testing.assert_close(actual, expected)
    ours.load_state_dict(theirs.state_dict())
    assert (ours.num_features, ours.num_classes) == (theirs.num_features, theirs.num_classes)


@every_name
@pytest.mark.parametrize("coarse", [False, True])
def test_parameters_are_grouped_alike(name: str, coarse: bool) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    expected = group_parameters(theirs, theirs.group_matcher(coarse))
    assert group_parameters(ours, ours.group_matcher(coarse)) == expected
    assert len(expected) > 3


@every_name
def test_timm_s_optimizers_take_our_models(name: str) -> None:
    groups = [
        timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1, layer_decay=0.5).param_groups
        for model in (timm.create_model(name), create_model(name))
    ]
    for expected, actual in zip(*groups, strict=True):
        assert [value.shape for value in actual["params"]] == [value.shape for value in expected["params"]]
        assert (actual["lr_scale"], actual["weight_decay"]) == (
            expected["lr_scale"],
            expected["weight_decay"],
        )


def test_grad_checkpointing_is_a_policy_that_changes_no_numbers() -> None:
    model = create_model("densenet121", growth_rate=8, block_config=(2, 2))
    model.set_grad_checkpointing()
    assert set(model.block_execution_report().values()) == {"linear-recompute"}
    model.set_grad_checkpointing(False)
    assert set(model.block_execution_report().values()) == {"plain"}
    residual = create_model("resnet18")
    residual.set_grad_checkpointing()
    assert set(residual.block_execution_report().values()) == {"linear"}
    other = create_model("regnetx_002")
    other.set_grad_checkpointing(False)
    with pytest.raises(UserError, match='block_execution="linear-recompute": must be plain or auto'):
        other.set_grad_checkpointing()


def test_pretrained_is_what_torchvision_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    published = [name for name in list_models() if name in torchvision.models.list_models()]
    assert list_models(pretrained=True) == published
    assert list_models("densenet*", pretrained=True) == [name for name in published if "densenet" in name]

    asked: list[object] = []

    def read_source(source: str, *, model_name: str) -> Checkpoint:
        asked.append(source)
        return Checkpoint(source=source, tensors=create_model(model_name).state_dict(), ordered=True)

    monkeypatch.setattr("skipnets.models.weights.sources.read_source", read_source)
    create_model("resnet18", True)
    create_model("resnet18", pretrained=True, features_only=True)
    assert asked == ["imagenet", "imagenet"]
    with pytest.raises(UserError, match='pretrained=True: means weights="imagenet"'):
        create_model("resnet18", pretrained=True, weights="IMAGENET1K_V1")


def test_out_indices_need_features_only() -> None:
    with pytest.raises(UserError, match=r"^out_indices=\(1, 2\): needs features_only=True$"):
        create_model("resnet18", out_indices=(1, 2))
    with pytest.raises(UserError, match=r"must be from 0 to 3, the maps of resnet20$"):
        create_model("resnet20", features_only=True, out_indices=(4,))
    assert create_model("resnet20", features_only=True).feature_info.reduction() == [1, 1, 2, 4]


# Libraries that take timm's backbones create them by name through timm, and read `feature_info`.


class PyramidBackbone(nn.Module):
    """What detection code builds around a backbone: its maps, made one width by a feature pyramid."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.out_channels = 16
        self.pyramid = FeaturePyramidNetwork(body.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((str(index), map_) for index, map_ in enumerate(self.body(x)))
        return self.pyramid(maps)


@pytest.mark.parametrize(
    ("name", "fields", "policy"),
    [
        ("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2)}, "linear"),
        ("resnet18", {"width": 8, "block_config": (1, 1, 1, 1)}, "plain"),
    ],
)
def test_a_detector_trains_on_our_backbone(name: str, fields: dict[str, Any], policy: Any) -> None:
    body = create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **fields)
    body.model.set_block_execution(policy)
    detector = RetinaNet(
        PyramidBackbone(body),
        num_classes=3,
        anchor_generator=AnchorGenerator(((8, 16), (16, 32), (32, 64), (64, 128)), ((1.0,),) * 4),
        min_size=64,
        max_size=96,
    )
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 44.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 64, 96)], [target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in body.parameters())
    found = detector.eval()([torch.rand(3, 64, 96)])
    assert found[0].keys() == {"boxes", "scores", "labels"}


def test_timm_creates_our_models_where_they_are_registered() -> None:
    """As `docs/reference/models.md` shows: libraries then take them by name, as any of timm's."""

    def tested_densenet121(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **options: Any,
    ) -> nn.Module:
        return skipnets.create_model("densenet121", pretrained, **options)

    timm.models.register_model(tested_densenet121)
    backbone = timm.create_model(
        "tested_densenet121", features_only=True, out_indices=(1, 2), growth_rate=8, in_chans=1
    )
    assert backbone.feature_info.channels() == [16 + 6 * 8, 32 + 12 * 8]
    assert [map_.shape[1:] for map_ in backbone(torch.randn(1, 1, 64, 64))] == [(64, 16, 16), (128, 8, 8)]


@pytest.mark.slow
def test_a_segmentation_library_takes_our_models_by_name() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation-models-pytorch")

    def tested_unet_encoder(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **options: Any,
    ) -> nn.Module:
        return skipnets.create_model("densenet121", pretrained, growth_rate=8, **options)

    timm.models.register_model(tested_unet_encoder)
    unet = smp.Unet("tu-tested_unet_encoder", encoder_weights=None, in_channels=1, classes=2)
    masks = unet(torch.randn(2, 1, 64, 64))
    assert masks.shape == (2, 2, 64, 64)
    masks.sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
