"""Matching by structure: what order and shapes can determine, and what they cannot."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.weights import load_weights
from skipnets.models.weights.structure import match
from skipnets.models.weights.target import NoMatchError, Target

WORDS = {
    "weight": ["weight", "weights", "gamma", "scale"],
    "bias": ["bias", "beta", "offset"],
    "running_mean": ["running_mean", "moving_mean", "mean"],
    "running_var": ["running_var", "moving_variance", "var"],
    "num_batches_tracked": ["num_batches_tracked"],
}


def numbered(tensors):
    """Every layer renamed to its place in the order."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    return {
        f"op{layers.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": tensor
        for name, tensor in tensors.items()
    }


def assert_refused(source, model, words, snapshot, assert_same):
    before = snapshot(model)
    with pytest.raises(UserError, match=words) as caught:
        load_weights(model, source)
    assert "\n" not in str(caught.value)
    assert_same(model, before)


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_layers_that_are_only_numbered(suffix, make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    report = load_weights(model, write(numbered(tensors), f"weights.{suffix}"))
    assert report.layout == "matched by structure"
    assert_same(model, tensors)
    assert str(report).count("←") == len(tensors)


FAMILIES = st.one_of(
    st.builds(
        lambda blocks, **fields: ("densenet121", {"block_config": blocks, "growth_rate": 4, **fields}),
        st.lists(st.integers(1, 12), min_size=1, max_size=3),
        bottleneck=st.sampled_from([None, 1, 4]),
        stem=st.sampled_from(["imagenet", "cifar"]),
        norm=st.sampled_from(["batch", "group", None]),
    ),
    st.builds(
        lambda blocks, **fields: ("resnet50", {"block_config": blocks, "width": 4, **fields}),
        st.lists(st.integers(1, 12), min_size=1, max_size=3),
        block=st.sampled_from(["basic", "bottleneck"]),
        shortcut=st.sampled_from(["projection", "pad"]),
        norm=st.sampled_from(["batch", "group", None]),
    ),
)


@settings(max_examples=30, deadline=None)
@given(family=FAMILIES, data=st.data())
def test_renamed_and_interleaved_otherwise(family, data):
    """Any words for the roles, roles in any order within a layer, norms where they are or all behind."""
    name, fields = family
    with torch.device("meta"):
        target = Target.of(create_model(name, num_classes=7, **fields))
    layers: dict[str, list[str]] = {}
    for key in target.tensors:
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    words = {role: data.draw(st.sampled_from(choices)) for role, choices in WORDS.items()}
    order = list(layers)
    if data.draw(st.booleans()):
        order.sort(key=lambda layer: target.tensors[f"{layer}.weight"].ndim == 1)  # all norms last
    foreign, expected = {}, {}
    for place, layer in enumerate(order):
        for key in data.draw(st.permutations(layers[layer])):
            role = key.rpartition(".")[2]
            if role == "num_batches_tracked" and data.draw(st.booleans()):
                continue
            expected[key] = f"x{place}_{words[role]}"
            foreign[expected[key]] = target.tensors[key]
    assert match(target, foreign, ordered=True) == expected


@settings(max_examples=30, deadline=None)
@given(family=FAMILIES, data=st.data())
def test_anything_missing_or_too_much_is_refused(family, data):
    name, fields = family
    with torch.device("meta"):
        target = Target.of(create_model(name, num_classes=7, **fields))
    foreign = numbered(target.tensors)
    required = [key for key in foreign if not key.endswith("num_batches_tracked")]
    if data.draw(st.booleans()):
        del foreign[data.draw(st.sampled_from(required))]
    else:
        foreign[data.draw(st.sampled_from(["extra.weight", "op0.mean", "op9999.bias", "thing"]))] = (
            torch.ones(3)
        )
    with pytest.raises(NoMatchError):
        match(target, foreign, ordered=data.draw(st.booleans()))


@settings(max_examples=30, deadline=None)
@given(family=FAMILIES, data=st.data())
def test_shuffled_layers_are_matched_rightly_or_not_at_all(family, data):
    name, fields = family
    with torch.device("meta"):
        target = Target.of(create_model(name, num_classes=7, **fields))
    foreign = numbered(target.tensors)
    expected = dict(zip(target.tensors, foreign, strict=True))
    shuffled = {key: foreign[key] for key in data.draw(st.permutations(list(foreign)))}
    try:
        found = match(target, shuffled, ordered=True)
    except NoMatchError:
        return
    assert found == expected


def test_left_over_tensors_are_listed(make, stirred, write, snapshot, assert_same):
    foreign = numbered(stirred(make())) | {"extra.weight": torch.zeros(3, 3, 5, 5)}
    assert_refused(write(foreign), make(), r"unexpected: extra.weight \(3, 3, 5, 5\)$", snapshot, assert_same)


def test_what_nothing_fits_is_listed(make, stirred, write, snapshot, assert_same):
    foreign = numbered(stirred(make()))
    del foreign["op0.weight"]
    model = make()
    stem = next(iter(model.state_dict()))
    words = rf"nothing matches {re.escape(stem)} \(\d+, 3, \d, \d\)$"
    assert_refused(write(foreign), model, words, snapshot, assert_same)


def test_names_without_a_role_are_refused(make, stirred, write, snapshot, assert_same):
    """Gamma and beta have one shape, mean and variance too."""
    foreign = {f"arr_{place}": tensor for place, tensor in enumerate(stirred(make()).values())}
    words = "the names do not say what these tensors are .* arr_0, arr_1.* and [0-9]+ more$"
    assert_refused(write(foreign, "weights.npz"), make(), words, snapshot, assert_same)


def test_numbers_against_the_order_are_refused(make_resnet20, stirred, write, snapshot, assert_same):
    """The first two convolutions behind the stem have one shape, so only numbers betray the swap."""
    tensors = numbered(stirred(make_resnet20()))
    foreign = {"op0.weight": tensors.pop("op0.weight"), "op4.weight": tensors.pop("op4.weight")} | tensors
    words = r"ambiguous: op2.weight \(16, 16, 3, 3\) comes after op4.weight"
    assert_refused(write(foreign), make_resnet20(), words, snapshot, assert_same)


def test_another_order_of_shapes_is_refused(make, stirred, write, snapshot, assert_same):
    tensors = numbered(stirred(make()))
    convolutions = [name for name, tensor in tensors.items() if tensor.ndim == 4]
    last = {name: tensors.pop(name) for name in convolutions[:1]}
    assert_refused(write(tensors | last), make(), "the order differs: ", snapshot, assert_same)


def test_a_sorted_source_is_matched_only_where_shapes_are_unique(
    make_resnet20, stirred, write, snapshot, assert_same
):
    """`stem` sorts behind `layer1`, so its norm would take the last place among sixteen equal ones."""
    tensors = stirred(make_resnet20())
    renames = {"conv1": "stem.conv", "bn1": "stem.bn", "fc": "top"}
    foreign = {
        re.sub(r"^(\w+)", lambda found: renames.get(found[1], found[1]), name).replace(
            "layer", "part"
        ): tensor
        for name, tensor in tensors.items()
    }
    words = "ambiguous: the source is sorted by name, and only another order distinguishes"
    assert_refused(write(foreign, "weights.safetensors"), make_resnet20(), words, snapshot, assert_same)
    assert_refused(write(dict(sorted(foreign.items()))), make_resnet20(), words, snapshot, assert_same)
    model = make_resnet20()
    load_weights(model, write(foreign))  # the very same in the order in which it was made
    assert_same(model, tensors)


def test_a_sorted_source_with_mostly_known_names(make_resnet20, stirred, write, assert_same):
    tensors = stirred(make_resnet20())
    foreign = {f"module.{name}".replace("fc.", "linear."): tensor for name, tensor in tensors.items()}
    model = make_resnet20()
    load_weights(model, write(foreign, "weights.safetensors"))
    assert_same(model, tensors)


def transformers_names(tensors):
    """The layout of Hugging Face's own ResNets, where a block registers its shortcut first."""
    foreign = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
        name = re.sub(r"^fc\.", "classifier.1.", name)
        block = re.match(r"layer(\d)\.(\d+)\.(\w+?)(\d?)\.(?:(\d)\.)?", name)
        if block:
            stage, index, what, number, part = block.groups()
            kind = "convolution" if what == "conv" or part == "0" else "normalization"
            place = "shortcut" if what == "downsample" else f"layer.{int(number) - 1}"
            prefix = f"resnet.encoder.stages.{int(stage) - 1}.layers.{index}.{place}.{kind}."
            name = prefix + name[block.end() :]
        foreign[name] = tensor
    blocks: OrderedDict[str, list[str]] = OrderedDict()
    for name in foreign:
        found = re.match(r"resnet\.encoder\.stages\.\d+\.layers\.\d+\.", name)
        blocks.setdefault(found[0] if found else name, []).append(name)
    order = [
        name for names in blocks.values() for name in sorted(names, key=lambda name: "shortcut" not in name)
    ]
    return {name: foreign[name] for name in order}


def test_shortcuts_that_come_first_in_their_block(make_resnet, stirred, write, assert_same):
    tensors = stirred(make_resnet())
    foreign = transformers_names(tensors)
    names = list(foreign)
    assert names.index("resnet.encoder.stages.0.layers.0.shortcut.convolution.weight") < names.index(
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    )
    model = make_resnet()
    load_weights(model, write(foreign))
    assert_same(model, tensors)


def test_unnamed_shortcuts_that_come_first(make_resnet, stirred, write, snapshot, assert_same):
    foreign = numbered(transformers_names(stirred(make_resnet())))
    assert_refused(write(foreign), make_resnet(), "the order differs: ", snapshot, assert_same)


class PreActivationBlock(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)


def pre_activation_resnet20():
    """He et al. 2016b: the same shapes in the same order as the original ResNet, and another network."""
    widths = [16, 16, 32, 64]
    layers = {
        f"layer{stage}": nn.Sequential(
            *(PreActivationBlock(widths[stage - (block == 0)], widths[stage]) for block in range(3))
        )
        for stage in (1, 2, 3)
    }
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, bias=False), **layers, bn=nn.BatchNorm2d(64), fc=nn.Linear(64, 5)
        )
    )


@pytest.mark.parametrize(("old", "new"), [("", ""), ("layer", "stage"), (".bn", ".norm")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_pre_activation_resnet_is_not_matched_with_the_original(
    old, new, suffix, make_resnet20, write, snapshot, assert_same
):
    theirs, model = pre_activation_resnet20().state_dict(), make_resnet20()
    shapes = [t.shape for name, t in theirs.items() if not name.endswith("tracked")]
    assert shapes == [t.shape for name, t in model.state_dict().items() if not name.endswith("tracked")]
    foreign = {name.replace(old, new): tensor for name, tensor in theirs.items()} if old else theirs
    assert_refused(write(foreign, f"weights.{suffix}"), model, "ambiguous: ", snapshot, assert_same)


def keras_names(tensors):
    """As Keras stores layers: kernels with channels last, gamma before beta."""
    words = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    foreign = {}
    for name, tensor in tensors.items():
        layer, _, role = name.rpartition(".")
        layer = layer.replace(".", "/")
        if tensor.ndim == 4:
            foreign[f"{layer}/kernel:0"] = tensor.permute(2, 3, 1, 0)
        elif tensor.ndim == 2:
            foreign[f"{layer}/kernel:0"] = tensor.T
        elif "classifier" in layer or "fc" in layer:
            foreign[f"{layer}/bias:0"] = tensor
        elif role != "num_batches_tracked":
            foreign[f"{layer}/{words.get(role, 'gamma')}:0"] = tensor
    return foreign


def test_keras_kernels_are_turned(make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    report = load_weights(model, write(keras_names(tensors), "weights.npz"))
    assert report.notes[0].startswith("kernels transposed from (height, width, in, out)")
    assert_same(
        model,
        {name: tensors[name] if name in report.mapping else t for name, t in model.state_dict().items()},
    )
    assert len(report.mapping) == sum(not name.endswith("tracked") for name in tensors)


def test_unnamed_channels_last_is_refused(make, stirred, write, snapshot, assert_same):
    foreign = {name.replace("kernel", "weight"): t for name, t in keras_names(stirred(make())).items()}
    assert_refused(
        write(foreign, "weights.npz"), make(), "nothing matches .* unexpected: ", snapshot, assert_same
    )
