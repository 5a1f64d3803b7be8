"""What `load_weights` promises: whole or not at all, and it says what it did."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import skipnets.models.weights
from skipnets.errors import UserError
from skipnets.models import create_model, list_models
from skipnets.models.weights import LoadReport, load_weights

TORCHVISION = [name for name in list_models() if name in torchvision.models.list_models(torchvision.models)]
QUICK = ("densenet121", "resnet18")
names = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TORCHVISION]
)


def test_public_names():
    assert skipnets.models.weights.__all__ == [
        "LoadReport",
        "PublishedInput",
        "PublishedLabels",
        "is_cached",
        "load_weights",
        "network_of",
    ]


def test_all_of_torchvisions_names_are_covered():
    assert len(TORCHVISION) == 14


@names
def test_torchvisions_state_dict_loads_and_gives_equal_logits(name, write, assert_same):
    theirs = torchvision.models.get_model(name, weights=None)
    x = torch.randn(2, 3, 64, 64)
    theirs(x)  # running statistics that keep a deep random network finite
    theirs.eval()
    ours = create_model(name, weights=write(theirs.state_dict())).eval()
    assert_same(ours, theirs.state_dict())
    assert ours.weights_report.layout == "named as in torchvision and timm"
    assert ours.weights_report.changes == ours.weights_report.notes == ()
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@names
def test_timms_names_are_torchvisions(name):
    with torch.device("meta"):
        timms, ours = timm.create_model(name).state_dict(), create_model(name).state_dict()
    assert {key: tensor.shape for key, tensor in timms.items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }


def test_the_published_resnet20_gets_all_images_right(shared_data):
    model = create_model("resnet20", weights=shared_data / "weights" / "resnet20-12fca82f.th").eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    paths = sorted((shared_data / "cifar10-png-20").glob("*.png"))
    images = torch.stack(
        [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255 for path in paths]
    )
    with torch.inference_mode():
        predicted = model((images - mean) / std).argmax(1)
    assert len(paths) == 20
    assert predicted.tolist() == [int(path.stem.split("_")[-1]) for path in paths]
    report = model.weights_report
    assert report.layout == "matched by structure"
    assert report.mapping["fc.weight"] == "module.linear.weight"
    assert len(report.mapping) == 97
    assert "fc.bias   ← module.linear.bias" in str(report)
    assert "95 tensors by their own names, after 'module.'" in str(report)


def test_report_is_the_same_object_and_survives_copies(make, stirred, write):
    model = make()
    source = write(stirred(make()))
    report = load_weights(model, str(source))
    assert isinstance(report, LoadReport)
    assert pickle.loads(pickle.dumps(report)) == copy.deepcopy(report) == report
    assert str(report).startswith(
        f"{model.config.name} from {source}: {len(report.mapping)} tensors, named as in"
    )


def test_batch_counters_may_be_missing(make, stirred, write, assert_same):
    tensors = stirred(make())
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(tensors)
    model = make()
    load_weights(model, write(old))
    assert_same(model, {**model.state_dict(), **old})
    assert {int(t) for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")} == {0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_float_types_are_cast(dtype, suffix, make, stirred, write, assert_same):
    tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in stirred(make()).items()}
    model = make()
    load_weights(model, write(tensors, f"weights.{suffix}"))
    assert_same(model, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


def test_half_weights_are_adapted_in_full_precision(make, stirred, write):
    tensors = {k: t.half() if t.is_floating_point() else t for k, t in stirred(make()).items()}
    model = make(in_chans=1)
    load_weights(model, write(tensors))
    stem = next(iter(tensors))
    assert torch.equal(model.state_dict()[stem], tensors[stem].float().sum(1, keepdim=True))


def test_whole_numbers_are_no_weights(make, stirred, write, snapshot, assert_same):
    tensors = stirred(make())
    stem = next(iter(tensors))
    tensors[stem] = tensors[stem].to(torch.int8)
    model = make()
    before = snapshot(model)
    with pytest.raises(UserError, match=rf"not floating-point numbers: {stem} \(torch.int8\)"):
        load_weights(model, write(tensors))
    assert_same(model, before)


def test_a_wrong_shape_names_the_tensor_and_touches_nothing(make, stirred, write, snapshot, assert_same):
    tensors = stirred(make())
    wrong = [name for name, tensor in tensors.items() if tensor.ndim == 4][-1]
    shape = tuple(tensors[wrong].shape)
    tensors[wrong] = torch.zeros(shape[0], shape[1] + 1, *shape[2:])
    model = make()
    before = snapshot(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, write(tensors))
    assert f"does not match {model.config.name}: {wrong} is {(shape[0], shape[1] + 1, *shape[2:])}" in str(
        caught.value
    )
    assert str(shape) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(model, before)


def test_missing_and_left_over_tensors_are_listed(make, stirred, write, snapshot, assert_same):
    tensors = stirred(make())
    missing = [name for name, tensor in tensors.items() if tensor.ndim == 4][2]
    del tensors[missing]
    tensors["auxiliary.weight"] = torch.zeros(3)
    model = make()
    before = snapshot(model)
    with pytest.raises(UserError, match=f"missing: {missing}; unexpected: auxiliary.weight$"):
        load_weights(model, write(tensors))
    assert_same(model, before)


def test_another_depth_lists_the_first_of_many(write):
    with pytest.raises(UserError, match=r"missing: layer1.3.conv1.weight, .* and \d+ more$"):
        create_model("resnet32", weights=write(create_model("resnet20").state_dict()))


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_a_backbone_gets_a_new_head(num_classes, foreign, make, stirred, write, assert_same, caplog):
    """Under known names, and matched by structure."""
    tensors = stirred(make())
    model = make(num_classes=num_classes)
    body = {k: t for k, t in tensors.items() if not k.startswith(model.head_name)}
    source = write({k.replace("conv", "convolution"): t for k, t in body.items()} if foreign else body)
    head = {name: tensor for name, tensor in stirred(model).items() if name not in body}
    report = load_weights(model, source)
    assert set(report.mapping) == set(body)
    if not num_classes:
        assert_same(model, body)
        assert report.changes == ()
        return
    assert report.changes == ("head newly initialized: the source has none",)
    assert f"{source}: head newly initialized: the source has none" in caplog.messages
    assert_same(model, body | head, but=tuple(head))
    weight, bias = (model.state_dict()[name] for name in head)
    assert not bias.any()
    assert 0 < weight.abs().max() <= model.num_features**-0.5


def test_half_a_head_is_no_backbone(make, stirred, write):
    model = make()
    tensors = stirred(make())
    weight, bias = (tensors.pop(f"{model.head_name}.{role}") for role in ("weight", "bias"))
    with pytest.raises(UserError, match=f"missing: {model.head_name}.bias$"):
        load_weights(model, write(tensors | {f"{model.head_name}.weight": weight}))
    with pytest.raises(UserError, match=f"missing: {model.head_name}.weight$"):
        load_weights(model, write(tensors | {f"{model.head_name}.bias": bias}))


def test_what_is_ignored_is_listed(make, stirred, write, assert_same, caplog):
    tensors = stirred(make())
    extra = {f"projection.{index}.weight": torch.ones(2, 2) for index in range(8)} | {"w": torch.ones(1)}
    model = make()
    source = write(extra | tensors)
    report = load_weights(model, source, ignore=["projection.*", "w"])
    assert_same(model, tensors)
    assert report.ignored == tuple(extra)
    assert f"ignored: {', '.join(extra)}" in str(report)
    assert caplog.messages == [f"{source}: ignored: {', '.join(extra)}"]
    other = create_model(
        model.config.name,
        weights=source,
        weights_ignore=["projection.*", "w"],
        **{key: value for key, value in vars(model.config).items() if key != "name"},
    )
    assert_same(other, tensors)


def test_a_backbone_beside_other_layers(make, stirred, write, assert_same):
    """As self-supervised methods save it: its own prefix, and a projection in place of the head."""
    tensors = stirred(make(num_classes=0))
    model = make()
    saved = {f"encoder.{k}": t for k, t in tensors.items()} | {"projector.0.weight": torch.ones(8, 8)}
    report = load_weights(model, write(saved), ignore=["projector.*"])
    assert report.prefix == "encoder."
    assert report.changes == ("head newly initialized: the source has none",)
    assert_same(make_headless(model), tensors)


def make_headless(model):
    model.reset_classifier(0)
    return model


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["fc2.*"], r"weights_ignore=fc2\.\*: must match a tensor of .*weights.pth, such as "),
        (["*"], r"weights_ignore=\*: must leave tensors of .*weights.pth$"),
        (["*running_var"], "missing: "),
    ],
)
def test_what_cannot_be_ignored(patterns, words, make, stirred, write, snapshot, assert_same):
    model = make()
    before = snapshot(model)
    with pytest.raises(UserError, match=words) as caught:
        load_weights(model, write(stirred(make())), ignore=patterns)
    assert "\n" not in str(caught.value)
    assert_same(model, before)


def test_patterns_need_weights():
    with pytest.raises(UserError, match=r"weights_ignore=fc: needs weights$"):
        create_model("resnet20", weights_ignore="fc")


def test_what_came_from_where_is_logged(make, stirred, write, caplog):
    """A line each where it was matched by structure; a table of names is not repeated."""
    tensors = stirred(make())
    with caplog.at_level(logging.INFO, logger="skipnets"):
        model = make()
        load_weights(model, write(tensors))
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith(f"{len(tensors)} tensors, named as in torchvision and timm")
        caplog.clear()
        head = model.head_name
        renamed = {name.replace(f"{head}.", "last.linear."): value for name, value in tensors.items()}
        report = load_weights(make(), write(renamed))
    assert caplog.messages == str(report).splitlines()
    assert caplog.messages[-1].endswith("← last.linear.bias")


def test_changes_are_logged(make, stirred, write, caplog):
    source = write(stirred(make()))
    with caplog.at_level(logging.WARNING, logger="skipnets"):
        load_weights(make(), source)
        assert caplog.messages == []
        model = make(num_classes=3, in_chans=1)
        report = load_weights(model, source)
    assert caplog.messages == [f"{source}: {change}" for change in report.changes]
    assert len(report.changes) == 2
