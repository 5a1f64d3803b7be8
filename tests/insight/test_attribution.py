"""Attributions: where the numbers lie, what they are, and that they find the evidence."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from tests.helpers.networks import DISTINCT_NETWORKS
from torch import nn

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.volume_files import Volume
from skipnets.errors import UserError
from skipnets.insight import Explanation, contact_sheet, explain
from skipnets.insight.attribution import METHODS, VolumeExplanation, stage_names
from skipnets.models import create_model, model_config
from skipnets.models.accounting import Grid
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel


def _classifier(name: str, size: int | tuple[int, int] = 32, **fields: object) -> Classifier:
    model = create_model(name, num_classes=3, **fields).eval()
    return Classifier.from_model(model, classes=["a", "b", "c"], preprocessing=Preprocessing(size=size))


@torch.no_grad()
def _settle(model: nn.Module, images: torch.Tensor) -> None:
    """Take the norms' statistics from these images: without any, a deep ResNet overflows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()(images)
    model.eval()


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(100, 60), (37, 81), (16, 16)])
def test_map_puts_every_value_where_the_network_saw_it(fit: str, width: int, height: int) -> None:
    """A grid whose values are their own places must give, at every pixel, that pixel's place in the input."""
    preprocessing = Preprocessing(size=(32, 48), fit=fit)
    position = Grid(step=4, start=-2.0)
    x = position.start + position.step * np.arange(14, dtype=np.float32)
    y = position.start + position.step * np.arange(10, dtype=np.float32)
    box = left, top, right, bottom = preprocessing.geometry(width, height)
    maps = [
        _explanation(_image(width, height), grid, position, box, preprocessing.size).map()
        for grid in (np.tile(x, (10, 1)), np.tile(y[:, None], (1, 14)))
    ]
    in_x = (np.arange(width) + 0.5 - left) * 48 / (right - left) - 0.5
    in_y = (np.arange(height) + 0.5 - top) * 32 / (bottom - top) - 0.5
    seen = ((in_y > -0.5) & (in_y < 31.5))[:, None] & ((in_x > -0.5) & (in_x < 47.5))
    assert seen.any()
    assert seen.all() == (fit != "crop" or width * 32 == height * 48)
    expected = np.where(seen, in_x, 0), np.where(seen, in_y[:, None], 0)
    np.testing.assert_allclose(maps, np.broadcast_arrays(*expected), atol=1e-4)


def _explanation(
    image: Image.Image,
    grid: np.ndarray,
    position: Grid,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
) -> Explanation:
    return Explanation(
        source="x.png", label="a", probability=1.0, method="gradcam", stage="layer1", image=image,
        grid=grid, positions=(position, position), box=box, input_size=size,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "stage"), [("resnet20", "layer2"), ("densenet_bc40_k12", "denseblock3")])
def test_gradcam_is_its_equation(name: str, stage: str) -> None:
    """Selvaraju et al. 2017, equations 1 and 2, before the ReLU."""
    classifier = _classifier(name)
    found = next(explain(classifier, [_image(40, 30)], classes=["b"], stage=stage))[0]
    x = torch.from_numpy(classifier.preprocess([_image(40, 30)])).requires_grad_()
    maps: list[torch.Tensor] = []
    hook = classifier.model.get_submodule(found.stage).register_forward_hook(
        lambda _m, _i, out: maps.append(out)
    )
    logit = classifier.model(x)[0, 1]
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, maps[0])
    expected = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1)[0].detach().numpy()
    np.testing.assert_allclose(found.grid, expected, rtol=1e-4, atol=1e-6)


def test_occlusion_is_what_the_class_loses() -> None:
    classifier = _classifier("resnet20", 16)
    image = _image(16, 16)
    found = next(explain(classifier, [image], classes=["c"], method="occlusion"))[0]
    batch = classifier.preprocess([image])
    whole = classifier.logits(batch)[0, 2]
    # The top left corner pixel is covered by the first window alone: 2 by 2, at a stride of 1.
    batch[0, :, :2, :2] = 0
    assert found.grid[0, 0] == pytest.approx(whole - classifier.logits(batch)[0, 2], abs=1e-5)


def test_integrated_gradients_add_up_to_the_logit() -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1), up to the steps of the sum."""
    classifier = _classifier("resnet20", 16)
    image = _image(16, 16)
    found = next(explain(classifier, [image], classes=["a"], method="integrated-gradients"))[0]
    batch = classifier.preprocess([image])
    difference = classifier.logits(batch)[0, 0] - classifier.logits(0 * batch)[0, 0]
    assert found.grid.sum() == pytest.approx(difference, rel=0.1, abs=0.02)


BIG = {
    name
    for name in DISTINCT_NETWORKS
    if model_config(name).default_size == 224 or sum(model_config(name).block_config) > 60
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in BIG else ()) for name in DISTINCT_NETWORKS]
)
def test_every_model_can_be_explained(name: str) -> None:
    size = 64 if model_config(name).default_size == 224 else 16
    classifier = _classifier(name, size)
    _settle(classifier.model, torch.randn(4, 3, size, size))
    before = [module.training for module in classifier.model.modules()]
    (found,) = next(explain(classifier, [_image(20, 30)]))
    assert found.map().shape == (30, 20)
    assert np.isfinite(found.grid).all()
    assert np.ptp(found.grid) > 0
    assert found.label in classifier.classes
    assert [module.training for module in classifier.model.modules()] == before


@pytest.mark.parametrize("method", METHODS)
def test_several_images_and_classes(method: str) -> None:
    classifier = _classifier("resnet20", 16)
    classifier.model.train()
    found = list(explain(classifier, [_image(9, 12), _image(30, 20)], classes=["a", "c"], method=method))
    assert [[item.label for item in row] for row in found] == [["a", "c"]] * 2
    assert [row[0].map().shape for row in found] == [(12, 9), (20, 30)]
    assert found[0][0].source == "[0]"
    assert classifier.model.training
    assert not np.allclose(found[0][0].grid, found[0][1].grid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["d"]}, "classes=d: must be a class of the classifier: a, b, c"),
        ({"method": "guess"}, "method=guess: must be one of gradcam"),
        ({"stage": "layr3", "method": "occlusion"}, "^stage=layr3: needs method=gradcam, not occlusion$"),
        (
            {"stage": "layer3", "method": "integrated-gradients"},
            "^stage=layer3: needs method=gradcam, not integrated-gradients$",
        ),
        ({"stage": "layer9"}, "stage=layer9: must be auto or one of relu, layer1, layer2, layer3"),
    ],
)
def test_wrong_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(_classifier("resnet20"), [_image(8, 8)], **options)


def test_one_path_is_one_image(tmp_path) -> None:
    _image(9, 12).save(tmp_path / "a.png")
    found = list(explain(_classifier("resnet20"), str(tmp_path / "a.png")))
    assert [row[0].source for row in found] == [str(tmp_path / "a.png")]


def test_a_map_of_one_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"1×1 .* choose a finer one"):
        explain(_classifier("resnet18", 32), [_image(8, 8)], stage="layer4")


def test_a_file_that_is_no_image(tmp_path) -> None:
    path = tmp_path / "x.jpg"
    path.write_text("no image")
    with pytest.raises(UserError, match=r"x\.jpg"):
        next(explain(_classifier("resnet20"), [path]))


def test_stages_are_named_as_their_blocks() -> None:
    assert stage_names(_classifier("densenet121", 64)) == [
        "relu0", "denseblock1", "denseblock2", "denseblock3", "denseblock4",
    ]  # fmt: skip
    assert stage_names(_classifier("resnet20")) == ["relu", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize("norm", ["filter-response", "evonorm-s0"])
def test_maps_are_taken_behind_norms_that_activate(norm: str) -> None:
    classifier = _classifier("densenet_bc40_k12", 64, block_config=(1, 1), norm=norm)
    found = next(explain(classifier, [_image(40, 30)], classes=["b"], stage="denseblock1"))[0]
    assert found.stage == "features.transition1.norm"


# The proof: photographs with a glyph somewhere in them that tells the class, or with none, so that it is
# known where a classifier that is right must have looked. Without the class of photographs alone, what lies
# beside the glyph could speak for any class, and nothing would be learned against it.

SIZE = 96
GLYPHS = ("circle", "cross", "ring", "triangle")
CLASSES = (*GLYPHS, "nothing")
NETWORKS = {
    "resnet": ("resnet18", {"block_config": (2, 1), "width": 24}),
    "densenet": ("densenet121", {"block_config": (4, 1), "growth_rate": 16}),
}


class Sample(NamedTuple):
    """An image; (left, top, right, bottom) of its glyph."""

    image: Image.Image
    label: str
    place: tuple[int, int, int, int]


def _glyph(name: str, size: int) -> Image.Image:
    """A mask, drawn four times as large for smooth edges."""
    edge = 4 * size - 1
    mask = Image.new("L", (edge + 1, edge + 1))
    draw = ImageDraw.Draw(mask)
    if name == "triangle":
        draw.polygon(((edge // 2, 0), (edge, edge), (0, edge)), fill=255)
    elif name == "cross":
        draw.rectangle((edge * 3 // 8, 0, edge * 5 // 8, edge), fill=255)
        draw.rectangle((0, edge * 3 // 8, edge, edge * 5 // 8), fill=255)
    else:
        draw.ellipse((0, 0, edge, edge), fill=255)
        if name == "ring":
            draw.ellipse((edge // 4, edge // 4, edge * 3 // 4, edge * 3 // 4), fill=0)
    return mask.resize((size, size), Image.Resampling.BOX)


def _sample(random: np.random.Generator, photographs: list[np.ndarray]) -> Sample:
    """A piece of a photograph; in seven of ten a glyph a fifth as large, anywhere, of a color that shows."""
    photograph = photographs[random.integers(len(photographs))]
    cut = int(random.integers(SIZE, 3 * SIZE))
    y, x = (int(random.integers(0, extent - cut)) for extent in photograph.shape[:2])
    image = Image.fromarray(photograph[y : y + cut, x : x + cut]).resize((SIZE, SIZE))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = int(random.integers(36, 52))
    left, top = map(int, random.integers(0, SIZE - size, 2))
    place = (left, top, left + size, top + size)
    if random.random() < 0.3:
        return Sample(image, "nothing", place)
    label = GLYPHS[random.integers(len(GLYPHS))]
    below = np.asarray(image.crop(place)).mean((0, 1))
    color = random.integers(0, 256, 3)
    while np.abs(color - below).mean() < 60:
        color = random.integers(0, 256, 3)
    image.paste(Image.new("RGB", (size, size), tuple(map(int, color))), place, _glyph(label, size))
    return Sample(image, label, place)


def _train(family: str, samples: list[Sample], epochs: int) -> Classifier:
    torch.manual_seed(0)
    name, fields = NETWORKS[family]
    model = create_model(name, num_classes=len(CLASSES), **fields)
    classifier = Classifier.from_model(model, classes=CLASSES, preprocessing=Preprocessing(size=SIZE))
    images = torch.from_numpy(classifier.preprocess([sample.image for sample in samples]))
    labels = torch.tensor([CLASSES.index(sample.label) for sample in samples])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    an_epoch = len(samples) // 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * an_epoch)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(samples)).split(32)[:an_epoch]:
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return classifier


def _explained(classifier: Classifier, samples: list[Sample]) -> list[Explanation]:
    return [next(explain(classifier, [each.image], classes=[each.label]))[0] for each in samples]


def _mass_inside(explanation: Explanation, sample: Sample, around: int) -> float:
    """Of the positive map, in the glyph's square and so many pixels around it."""
    left, top, right, bottom = sample.place
    positive = np.maximum(explanation.map(), 0)
    inside = positive[max(top - around, 0) : bottom + around, max(left - around, 0) : right + around]
    return float(inside.sum() / max(positive.sum(), 1e-9))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes of one core each, more where others share it
@pytest.mark.parametrize("family", NETWORKS)
def test_the_evidence_is_found_where_it_was_put(family: str, tmp_path: Path) -> None:
    random, photographs = np.random.default_rng(0), load_sample_images().images
    training = [_sample(random, photographs) for _ in range(3000)]
    testing = [_sample(random, photographs) for _ in range(250)]
    classifier = _train(family, training, epochs=10)
    answers = classifier.predict([sample.image for sample in testing])
    right = np.mean([s.label == answer.label for s, answer in zip(testing, answers, strict=True)])
    assert right >= 0.95

    shown = [sample for sample in testing if sample.label != "nothing"][:100]
    found = _explained(classifier, shown)
    assert found[0].positions[0].step == 8
    contact_sheet([[replace(each, source=each.label)] for each in found[:6]]).save(tmp_path / f"{family}.png")
    # With a value every 8 pixels, a map can place an edge no better than to half of that. The square takes a
    # fifth of the image, with 4 pixels around it less than a third.
    inside = [_mass_inside(each, sample, around=4) for each, sample in zip(found, shown, strict=True)]
    assert np.mean(inside) >= 0.8

    # The maps are the head's, too: with another one they are others. One random head may happen to agree.
    head = classifier.model.get_classifier()
    spread, alike = float(head.weight.detach().std()), []
    for _ in range(6):
        torch.nn.init.normal_(head.weight, std=spread)
        for before, after in zip(found, _explained(classifier, shown[:16]), strict=False):
            alike.append(np.corrcoef(before.grid.ravel(), after.grid.ravel())[0, 1])
    assert np.mean(alike) < 0.5


@pytest.mark.parametrize("method", ["gradcam", "integrated-gradients"])
def test_the_map_of_an_ensemble_is_the_mean_of_its_networks_maps(method: str) -> None:
    torch.manual_seed(0)
    members = [_classifier("resnet20", block_config=(1, 1, 1)) for _ in range(2)]
    ensemble = Classifier.from_members(members)
    [[found]] = explain(ensemble, [_image(40, 40)], classes=["b"], method=method)  # type: ignore[arg-type]
    each = [next(explain(member, [_image(40, 40)], classes=["b"], method=method))[0] for member in members]  # type: ignore[arg-type]
    np.testing.assert_allclose(found.grid, (each[0].grid + each[1].grid) / 2, rtol=1e-5, atol=1e-7)
    assert found.probability == pytest.approx((each[0].probability + each[1].probability) / 2)
    assert found.stage == each[0].stage


def _volume_explanation(**fields: object) -> VolumeExplanation:
    about = {"source": "a.npy", "label": "a", "probability": 0.5, "method": "gradcam", "stage": "layer1"}
    shown = {"image": Image.new("L", (1, 1)), "box": (0, 0, 1, 1), "input_size": (1, 1)}
    return VolumeExplanation(**about, **shown, spacing=(2, 1, 1), **fields)  # type: ignore[arg-type]


def test_maps_of_volumes_lie_where_the_network_saw_them() -> None:
    """A grid whose values are their own places must give, at every voxel, that voxel's place in the input."""
    preprocessing = Preprocessing((16, 24, 20), channels=1, window=(0, 1), fit="pad")
    volume = Volume(array=np.zeros((10, 30, 20, 1)), bits=64, spacing=(2, 1, 1))
    axes = preprocessing.volume_axes(volume.array.shape[:3], volume.spacing)
    assert [axis.resized for axis in axes] == [16, 24, 16]
    position = Grid(step=4, start=-2.0)
    places = [position.start + position.step * np.arange(n, dtype=np.float32) for n in (6, 8, 7)]
    for number, axis in enumerate(axes):
        shape = [1, 1, 1]
        shape[number] = len(places[number])
        found = _volume_explanation(
            grid=np.broadcast_to(places[number].reshape(shape), (6, 8, 7)),
            positions=(position,) * 3,
            sides=volume.array.shape[:3],
            sizes=preprocessing.size,
            ranges=tuple(
                (each.start * side / each.resized, (each.start + size) * side / each.resized)
                for each, side, size in zip(axes, (10, 30, 20), preprocessing.size, strict=True)
            ),
        ).array()
        side = volume.array.shape[number]
        expected = (np.arange(side) + 0.5) * axis.resized / side - axis.start - 0.5
        line = np.moveaxis(found, number, -1)[4, 7]
        np.testing.assert_allclose(line, expected, atol=1e-4)


@pytest.mark.parametrize("dims", [1, 3])
def test_maps_of_the_last_stage_of_signals_and_volumes_sum_to_the_logit(dims: int) -> None:
    model = create_model(
        "resnet8_w16", dims=dims, num_classes=3, in_chans=2, block_config=(1, 1), width=8
    ).eval()
    size = (12, 10, 14)[:dims]
    classifier = Classifier.from_model(
        model, classes=["a", "b", "c"], preprocessing=Preprocessing(size, channels=2, window=(-1, 1))
    )
    source = np.random.default_rng(0).uniform(-1, 1, (*(2 * side for side in size), 2)).astype(np.float32)
    stage = stage_names(classifier)[-1]
    [[found]] = explain(classifier, [source], classes=["b"], stage=stage)
    logit = classifier.logits(classifier.preprocess(source))[0, 1] - model.fc.bias[1].item()
    assert found.grid.sum() == pytest.approx(logit, rel=1e-4)
    assert found.array().shape == source.shape[:-1]
    assert found.map().shape == found.image.size[::-1]
    assert found.resized(0.5).map().shape == found.resized(0.5).image.size[::-1]
    [[by_pixels]] = explain(classifier, [source], classes=["b"], method="integrated-gradients")
    assert by_pixels.grid.shape == size
    assert contact_sheet([[found, by_pixels]]).width > 3 * 256


def test_maps_of_own_networks_with_other_strides_along_each_axis() -> None:
    class Anisotropic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv3d(1, 1, (1, 2, 4), stride=(1, 2, 4), bias=False)
            self.head = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x).mean((2, 3, 4)))
            return logits

    size, place = (4, 8, 16), (1, 5, 13)
    model = Anisotropic()
    torch.nn.init.ones_(model.body.weight)
    torch.nn.init.constant_(model.head.weight, 1.0)
    classifier = Classifier.from_model(
        CustomModel.around(model, CustomConfig(name="Own", num_classes=2, in_chans=1, dims=3)),
        classes=["a", "b"],
        preprocessing=Preprocessing(size, channels=1, window=(0, 1), mean=[0], std=[1]),
    )
    volume = np.zeros(size, np.float32)
    volume[place] = 1
    [[found]] = explain(classifier, [volume], classes=["b"], stage="body")
    assert found.grid.shape == (4, 4, 4)
    # The brightest voxel lies in the cell of the strongest value, and the map is highest beside it.
    assert isinstance(found, VolumeExplanation)
    assert all(
        abs(at - there) < stride for at, there, stride in zip(found.center, place, (1, 2, 4), strict=True)
    )


def test_the_map_of_a_long_signal_takes_as_much_memory_as_the_signal() -> None:
    length = 200_000
    about: dict[str, Any] = {
        "source": "a.npy",
        "label": "a",
        "probability": 0.5,
        "method": "gradcam",
        "stage": None,
    }
    picture: dict[str, Any] = {"image": Image.new("L", (1, 1)), "box": (0, 0, 1, 1), "input_size": (1, 1)}
    found = VolumeExplanation(
        **about, **picture, grid=np.arange(512, dtype=np.float32), positions=(Grid(),), sides=(length,),
        spacing=(1.0,), ranges=((0.0, float(length)),), sizes=(512,),
    )  # fmt: skip
    tracemalloc.start()
    try:
        whole = found.array()
        assert tracemalloc.get_traced_memory()[1] < 100 * length
    finally:
        tracemalloc.stop()
    places = np.clip((np.arange(length) + 0.5) * 512 / length - 0.5, 0, 511)
    np.testing.assert_allclose(whole, places, atol=1e-3)
