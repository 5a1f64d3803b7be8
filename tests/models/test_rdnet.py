"""RDNet, against timm's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tests.helpers.graphs import assert_equal_to_the_built_model
from tests.helpers.networks import SMALL_RDNET as SMALL
from torch import Tensor, nn

import skipnets
from skipnets.models import create_model
from skipnets.models.rdnet_graph import RDNETS

NAMES = [config.name for config in RDNETS]


def pair(**rates: Any) -> tuple[nn.Module, Any]:
    """timm's and our small network with the same random parameters, none of them negligible."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "rdnet_tiny",
        num_classes=5,
        num_init_features=16,
        num_blocks_list=SMALL["block_config"],
        growth_rates=SMALL["growth_rates"],
        is_downsample_block=(None, True, False),
        block_type=("Block", "Block", "BlockESE"),
        **rates,
    )
    ours = create_model("rdnet_tiny", num_classes=5, **SMALL, **rates)
    with torch.no_grad():
        for parameter in theirs.parameters():  # layer scale begins near 0, which would hide the branches
            parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 4) ** 0.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images() -> Tensor:
    return torch.randn(3, 3, 37, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_timm_s(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    expected = [(key, value.shape) for key, value in theirs.state_dict().items()]
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == expected
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    for key in ("num_chs", "reduction"):
        found = [info[key] for info in ours.feature_info]
        assert found == [info[key] for info in theirs.feature_info]
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    for key in ("first_conv", "classifier"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    assert ours.group_matcher() == theirs.group_matcher()


def test_outputs_are_timm_s() -> None:
    theirs, ours = (model.eval() for model in pair())
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
        maps = theirs.forward_features(images())
        torch.testing.assert_close(ours.forward_features(images()), maps, rtol=1e-5, atol=1e-5)
        for pre_logits in (False, True):
            torch.testing.assert_close(
                ours.forward_head(maps, pre_logits), theirs.forward_head(maps, pre_logits)
            )
        expected = theirs.forward_intermediates(images(), intermediates_only=True)
        found = ours.forward_intermediates(images(), intermediates_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_training_is_timm_s() -> None:
    """Dropout and stochastic depth draw the same numbers in the same order."""
    theirs, ours = pair(drop_path_rate=0.4, proj_drop_rate=0.2, drop_rate=0.3)
    losses = []
    for model in (theirs, ours):
        torch.manual_seed(7)
        output = model.train()(images())
        output.square().sum().backward()
        losses.append(output)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    for (name, expected), found in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(
            found.grad, expected.grad, rtol=1e-4, atol=1e-4 * float(expected.grad.abs().max()), msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whole_networks_are_timm_s(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.normal_()
    ours = create_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    outputs = [model(x) for model in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().mean().backward()
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        atol = 1e-4 * float(expected.grad.abs().max())
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol)


def test_a_new_network_begins_like_timm_s() -> None:
    """The same distributions: spread of weights, zero bias of the head, layer scale of 1e-6."""
    ours = create_model("rdnet_tiny", **SMALL)
    kept = timm.create_model(
        "rdnet_tiny",
        num_init_features=16,
        num_blocks_list=SMALL["block_config"],
        growth_rates=SMALL["growth_rates"],
        is_downsample_block=(None, True, False),
        block_type=("Block", "Block", "BlockESE"),
    )
    for (name, expected), found in zip(kept.named_parameters(), ours.parameters(), strict=True):
        if expected.numel() > 400:
            spread = [float(parameter.detach().std()) for parameter in (expected, found)]
            assert spread[1] == pytest.approx(spread[0], rel=0.25), name
    assert ours.dense_stages[0][0][0].gamma.tolist() == pytest.approx([1e-6] * 8)
    assert not ours.get_classifier().bias.any()


def test_heads_are_replaced_with_their_norm() -> None:
    model = create_model("rdnet_tiny", num_classes=4, **SMALL)
    model.reset_classifier(6, "catavgmax")
    assert (model.head_hidden_size, model.head["norm"].weight.shape) == (2 * 64, (2 * 64,))
    assert model(images()).shape == (3, 6)
    model.reset_classifier(3, "avg")
    assert model(images()).shape == (3, 3)
    assert_equal_to_the_built_model(model.config)


@pytest.mark.parametrize("indices", [1, (0,), None])
def test_feature_extractors_are_timm_s(indices: Any) -> None:
    theirs, ours = pair()
    x = images()
    with torch.no_grad():
        expected = theirs.eval().forward_intermediates(x, indices, intermediates_only=True)
        kept = ours.eval().prune_intermediate_layers(indices)
        assert kept == theirs.prune_intermediate_layers(indices)
        found = ours.forward_intermediates(x, kept, intermediates_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not [name for name, _ in ours.named_parameters() if name.startswith("head")]
    assert ours.num_features == theirs.num_features


def test_grad_cam_and_reuse_have_its_stages() -> None:
    from skipnets.insight import reuse
    from skipnets.insight.attribution import explain, stage_names

    model = create_model("rdnet_tiny", num_classes=3, **SMALL).eval()
    classifier = skipnets.Classifier.from_model(
        model, classes=["a", "b", "c"], preprocessing=skipnets.Preprocessing(size=32)
    )
    assert stage_names(classifier) == ["stem.1", "dense_stages.0.0", "dense_stages.1.2", "dense_stages.2.2"]
    image = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    ((explanation,),) = explain(classifier, [image])
    assert explanation.grid.shape == (8, 8)
    assert [block.block for block in reuse(classifier).blocks] == [
        f"dense_stages.{number}.{min(number, 1) * 2}" for number in range(3)
    ]


def test_a_narrow_network_with_group_norms_sees_its_input() -> None:
    """Groups of its pooled features would have one value each, and be 0 for every image."""
    torch.manual_seed(0)
    narrow: dict[str, Any] = {"block_config": (1,), "growth_rates": (8,), "halves": (False,)}
    narrow |= {"squeeze_excitation": (False,), "stem_channels": 8, "layer_scale": 1.0}
    model = create_model("rdnet_tiny", num_classes=3, norm="group", **narrow).eval()
    with torch.no_grad():
        logits = model(images())
    assert (logits[0] - logits[1]).abs().min() > 1e-3
