"""Configs and the table: names, counts, fields, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.networks import EVERY_NETWORK

from skipnets.errors import UserError
from skipnets.models import (
    DenseNetConfig,
    ResNetConfig,
    build_model,
    config_from_dict,
    config_to_dict,
    create_model,
    list_models,
    model_config,
)
from skipnets.models.regnet_graph import REGNETS
from skipnets.models.resnet_variants import RESNET_VARIANTS
from skipnets.models.resnetv2_graph import RESNETV2S

# Published numbers: torchvision's documentation, and table 2 of the DenseNet paper and table 6 of the ResNet
# paper, which round these.
TRAINABLE_PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "densenet264": 33_337_704,
    "densenet264_k48": 72_686_632,
    "densenet40_k12": 1_019_722,
    "densenet100_k12": 6_979_642,
    "densenet100_k24": 27_249_082,
    "densenet_bc40_k12": 176_122,
    "densenet_bc100_k12": 769_162,
    "densenet_bc250_k24": 15_324_406,
    "densenet_bc190_k40": 25_624_430,
    "densenet_bc40_k48": 2_733_130,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}


@pytest.mark.parametrize(("name", "count"), TRAINABLE_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == count


def test_patterns_select_names_in_the_registry_s_order() -> None:
    assert list_models("densenet?69") == ["densenet169"]
    assert list_models("resnet?8*") == ["resnet18", "resnet18d"]
    assert list_models("resnet10*", pretrained=True) == ["resnet101"]
    assert list_models("densenet_bc*")[0] == "densenet_bc40_k12"
    assert len(list_models()) == 46 + len(RESNET_VARIANTS) + len(REGNETS) + len(RESNETV2S)
    assert list_models("vgg*") == []


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_a_config_survives_json(name: str) -> None:
    config = model_config(name, num_classes=7, drop_rate=0.25)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("densnet121", {}, "did you mean densenet121"),
        ("nothing-like-it", {}, "model=nothing-like-it: must be a model"),
        ("densenet121", {"growthrate": 12}, "did you mean growth_rate"),
        ("resnet18", {"growth_rate": 12}, "growth_rate: must be a field of resnet18"),
        ("densenet121", {"growth_rate": 0}, "growth_rate=0: must be a whole number from 1 to 1024"),
        ("densenet121", {"growth_rate": 12.0}, "growth_rate=12.0: must be a whole number"),
        ("densenet121", {"compression": 0.0}, "compression=0.0: must be above 0"),
        ("densenet121", {"compression": float("nan")}, "compression=nan: must be above 0"),
        ("densenet121", {"block_config": ()}, "block_config=(): must list"),
        ("densenet121", {"block_config": (6, -1)}, "block_config=-1: must be a whole number"),
        ("densenet121", {"block_config": "6,12"}, "block_config='6,12': must list"),
        ("densenet121", {"stem": "tiny"}, "stem='tiny': must be one of 'imagenet', 'small', 'cifar'"),
        ("densenet121", {"norm": "layer"}, "norm='layer': must be one of"),
        ("densenet121", {"in_chans": True}, "in_chans=True: must be a whole number"),
        ("resnet50", {"drop_rate": 1.0}, "drop_rate=1.0: must be at least 0 and below 1"),
        ("resnet50", {"drop_path_rate": -0.1}, "drop_path_rate=-0.1: must be at least 0"),
        ("resnet50", {"output_stride": 12}, "output_stride=12: must be one of 4, 8, 16, 32, None"),
        ("resnet18", {"groups": 2}, 'apply to block="bottleneck" only'),
        ("resnet50", {"width": 8, "width_per_group": 4}, "width=8, width_per_group=4: leave no channel"),
        (
            "resnet50",
            {"global_pool": "mean"},
            "global_pool='mean': must be one of 'avg', 'max', 'avgmax', 'catavgmax', ''",
        ),
        ("resnet50", {"global_pool": ""}, 'global_pool="": needs num_classes=0, not 1000'),
        ("resnet50", {"head_drop_rate": 0.2}, "head_drop_rate: must be a field of resnet50"),
        ("resnet50", {"norm": None, "zero_init_last": True}, "zero_init_last=True: needs norms"),
        ("resnet50", {"zero_init_last": 1}, "zero_init_last=1: must be true or false"),
    ],
)
def test_wrong_names_and_values_say_what_would_be_right(name: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        model_config(name, **fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "vgg"}, "family='vgg': must be one of densenet, resnet"),
        ({}, "family=None: must be one of"),
        ({"family": "densenet", "name": "x"}, "architecture: densenet needs the fields block_config"),
        (
            {"family": "densenet", "name": "x", "block_config": [1], "depth": 3},
            "architecture: densenet has no fields depth",
        ),
        ({"family": "densenet", "name": 3, "block_config": [1]}, "name=3: must be a string"),
        ({"family": "densenet", "name": "x", "block_config": [10**9]}, "block_config=1000000000: must be"),
    ],
)
def test_a_strange_description_is_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict(values)


def test_none_is_also_a_word() -> None:
    assert model_config("resnet18", norm="none") == model_config("resnet18", norm=None)


def test_the_stem_follows_the_growth_rate_unless_it_is_given() -> None:
    assert model_config("densenet121", growth_rate=48).stem_channels == 96
    assert model_config("densenet121", bottleneck=None).stem_channels == 16
    assert model_config("densenet121", growth_rate=48, stem_channels=64).stem_channels == 64


@given(
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    growth_rate=st.integers(1, 9),
    bottleneck=st.sampled_from([None, 1, 4]),
    compression=st.floats(0.1, 1.0),
    stem=st.sampled_from(["imagenet", "small", "cifar"]),
    norm=st.sampled_from(["batch", "group", None]),
    in_chans=st.integers(1, 5),
)
def test_parameters_of_any_densenet_follow_the_closed_form(
    blocks, growth_rate, bottleneck, compression, stem, norm, in_chans
) -> None:
    config = DenseNetConfig(
        name="any",
        block_config=tuple(blocks),
        growth_rate=growth_rate,
        bottleneck=bottleneck,
        compression=compression,
        stem=stem,
        norm=norm,
        in_chans=in_chans,
        num_classes=3,
    )
    with torch.device("meta"):
        model = build_model(config)

    def convolution(into: int, out: int, kernel: int) -> int:
        return into * out * kernel**2 + (out if norm is None else 0)

    def normalization(channels: int) -> int:
        return 0 if norm is None else 2 * channels

    channels = 16 if bottleneck is None else 2 * growth_rate
    expected = convolution(in_chans, channels, 7 if stem == "imagenet" else 3)
    expected += normalization(channels) if stem == "imagenet" else 0
    for number, layers in enumerate(blocks):
        for _ in range(layers):
            if bottleneck is None:
                expected += normalization(channels) + convolution(channels, growth_rate, 3)
            else:
                width = bottleneck * growth_rate
                expected += normalization(channels) + convolution(channels, width, 1)
                expected += normalization(width) + convolution(width, growth_rate, 3)
            channels += growth_rate
        if number < len(blocks) - 1:
            kept = max(int(channels * compression), 1)
            expected += normalization(channels) + convolution(channels, kept, 1)
            channels = kept
    expected += normalization(channels) + (channels + 1) * 3
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_configs_cannot_be_changed() -> None:
    config = model_config("resnet18")
    assert isinstance(config, ResNetConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, skipnets.models as m; m.model_config('resnet18'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
