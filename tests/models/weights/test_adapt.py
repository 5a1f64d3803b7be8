"""Heads for other classes, first convolutions for other channels."""

from __future__ import annotations

import pytest
import torch
from timm.models import adapt_input_conv

from skipnets.errors import UserError
from skipnets.models.weights import load_weights
from skipnets.models.weights.adapt import adapt_channels


def test_other_classes_keep_the_body_and_renew_the_head(make, stirred, write, assert_same):
    tensors = stirred(make(num_classes=5))
    model = make(num_classes=8)
    stirred(model)
    head = (f"{model.head_name}.weight", f"{model.head_name}.bias")
    report = load_weights(model, write(tensors))
    assert report.changes == (
        f"head re-initialized: {model.head_name} is for 5 classes in the source and 8 in the model",
    )
    assert report.changes[0] in str(report)
    assert set(report.mapping) == set(tensors) - set(head)
    assert_same(model, {**tensors, **{name: model.state_dict()[name] for name in head}})
    weight, bias = (model.state_dict()[name] for name in head)
    assert weight.shape == (8, model.num_features)
    assert not bias.any()
    assert (
        weight.abs().max() <= model.num_features**-0.5
    )  # nn.Linear's own range, not what stood there before


@pytest.mark.parametrize("renamed", [False, True])
def test_no_classes_leave_the_head_out(renamed, make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make(num_classes=0)
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith(model.head_name)}
    if renamed:
        tensors = {name.replace(f"{model.head_name}.", "top."): tensor for name, tensor in tensors.items()}
    report = load_weights(model, write(tensors))
    assert_same(model, body)
    top = "top" if renamed else model.head_name
    assert report.notes == (f"left out, as the model has 0 classes: {top}.bias, {top}.weight",)


def test_a_head_at_odds_with_itself_is_refused(make, stirred, write):
    tensors = stirred(make())
    model = make()
    tensors[f"{model.head_name}.bias"] = torch.zeros(6)
    with pytest.raises(UserError, match=rf"{model.head_name}.weight is for 5 classes and .*bias for 6"):
        load_weights(model, write(tensors))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_first_convolution_follows_the_channels(channels, make, stirred, write, assert_same):
    tensors = stirred(make())
    stem = next(iter(tensors))
    model = make(in_chans=channels)
    report = load_weights(model, write(tensors))
    how = "summed over its input channels" if channels == 1 else "repeated and rescaled"
    assert report.changes == (
        f"first convolution {how}: {stem} has 3 in the source and {channels} in the model",
    )
    assert_same(model, tensors | {stem: adapt_channels(tensors[stem], channels)})


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 12])
def test_channels_are_adapted_as_timm_does(channels):
    weight = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(adapt_channels(weight, channels), adapt_input_conv(channels, weight))


def test_a_gray_image_gives_the_logits_of_its_color_copy():
    weight, gray = torch.randn(4, 3, 3, 3), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(
        torch.conv2d(gray, adapt_channels(weight, 1)), torch.conv2d(gray.expand(2, 3, 8, 8), weight)
    )


def test_color_from_gray_gives_equal_logits_on_gray():
    weight, gray = torch.randn(4, 1, 3, 3), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(
        torch.conv2d(gray.expand(2, 3, 8, 8), adapt_channels(weight, 3)), torch.conv2d(gray, weight)
    )


def test_head_and_stem_are_adapted_in_foreign_layouts_too(make, stirred, write, assert_same):
    tensors = stirred(make())
    stem = next(iter(tensors))
    model = make(num_classes=2, in_chans=1)
    foreign = {name.replace("conv", "convolution").replace("fc", "top"): t for name, t in tensors.items()}
    foreign = {name.replace("classifier", "top"): tensor for name, tensor in foreign.items()}
    report = load_weights(model, write(foreign))
    assert report.layout == "matched by structure"
    assert len(report.changes) == 2
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(model.head_name)}
    assert_same(model, tensors | {stem: tensors[stem].sum(1, keepdim=True)} | head)
