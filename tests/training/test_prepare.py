from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

import skipnets
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import Listing
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.training import TrainConfig
from skipnets.training.prepare import (
    channel_statistics,
    class_weights,
    natural_size,
    prepare,
    resolve_precision,
)

MakeConfig = Callable[..., TrainConfig]


def images_in_memory(count: int, size: tuple[int, ...], seed: int = 0) -> ImageDataset:
    generator = np.random.default_rng(seed)
    return ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.array(["train", "train", "train", "val", "test"] * count)[:count],
        images=generator.integers(0, 200, (count, *size)).astype(np.uint8),
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), ((8, 8), "densenet_bc40_k12", 1)),
        ((32, 48, 3), ((32, 48), "densenet_bc40_k12", 3)),
        ((65, 40), ((224, 224), "densenet121", 1)),
    ],
)
def test_size_model_and_channels_follow_from_the_images(
    size: tuple[int, ...], expected: tuple[tuple[int, int], str, int]
) -> None:
    given = TrainConfig(
        data="x", out=Path("y"), recipe="scratch", block_execution="plain", channels_last=True
    )
    prepared = prepare(given, images_in_memory(10, size))
    config = prepared.config
    assert (config.size, config.model, config.channels) == expected
    assert prepared.model.num_classes == 2
    assert prepared.model.config.in_chans == config.channels
    assert prepared.preprocessing.mean == config.mean


def test_files_of_different_small_sizes_are_shown_at_the_largest(tmp_path: Path) -> None:
    sizes = [(20, 30), (40, 10), (12, 12), (9, 9)]
    for number, (height, width) in enumerate(sizes):
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("L", (width, height)).save(tmp_path / label / f"{number}.png")
    everything = open_dataset(tmp_path, fractions=None)
    assert natural_size(everything) == (40, 30)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(100, 400)] * 9 + [(110, 420)], (100, 400)),  # as they are, up to the pixels of 224×224
        ([(300, 1200)] * 10, (112, 448)),
        ([(3000, 30)] * 10, (634, 79)),  # at most eight times as high as wide
        ([(40, 900)] * 5 + [(900, 40)] * 5, 224),  # lying and standing
        ([(90, 120)] * 10, 120),
        ([(100, 400)] * 5 + [(100, 110)] * 5, 224),
    ],
)
def test_elongated_images_keep_their_proportions(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: int | tuple[int, int]
) -> None:
    for number, (height, width) in enumerate(sizes):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.new("L", (width, height)).save(folder / f"{number}.png")
    images = open_dataset(tmp_path, fractions=None)
    assert natural_size(images, kept=224, elongated=True) == expected
    assert natural_size(images, kept=224) in (120, 224)


def test_unequal_classes_are_noted_unless_that_was_thought_of(tiny: MakeConfig) -> None:
    images = images_in_memory(200, (8, 8))
    for every, imbalance, noted in ((16, None, True), (4, None, False), (16, "none", False)):
        labels = (np.arange(200) % every == 0).astype(np.int64)
        dataset = dataclasses.replace(images, labels=labels, listing=Listing())
        prepare(tiny(imbalance=imbalance), dataset)
        a, b = dataset.split("train").counts()
        told = [note for note in dataset.listing.notes if note.endswith("makes each class count the same")]
        assert len(told) == noted
        if noted:
            assert told[0].startswith(f"a has {a} training images, b {b}: accuracy says little")


def test_statistics_are_those_of_the_pixels_of_the_training_split() -> None:
    train = images_in_memory(50, (6, 7, 3)).split("train")
    assert train.images is not None
    values = train.images.astype(np.float64) / 255
    mean, std = channel_statistics(train, Preprocessing((6, 7)))
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(std, values.std((0, 1, 2)), atol=5e-5)


def test_statistics_of_one_color_stay_finite() -> None:
    train = images_in_memory(10, (6, 6)).split("train")
    assert train.images is not None
    train.images[:] = 51
    assert channel_statistics(train, Preprocessing(6, channels=1)) == ((0.2,), (0.0039,))


def test_class_weights_are_scikit_learns() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(labels, 3), expected, rtol=1e-6)


def test_an_absent_class_weighs_nothing() -> None:
    assert class_weights(np.array([0, 0, 2]), 4).tolist() == [0.75, 0.0, 1.5, 0.0]


def test_the_block_execution_is_resolved(tiny: MakeConfig) -> None:
    images = images_in_memory(10, (8, 8))
    assert prepare(tiny(), images).config.block_execution in ("plain", "linear")
    assert prepare(tiny(block_execution="plain"), images).config.block_execution == "plain"


def test_the_best_epoch_is_chosen_by_balanced_accuracy_where_classes_are_unequal(tiny: MakeConfig) -> None:
    images = images_in_memory(10, (8, 8))
    assert prepare(tiny(), images).config.best_by == "accuracy"
    assert prepare(tiny(imbalance="weighted-loss"), images).config.best_by == "balanced-accuracy"


def test_finetuning_starts_from_a_checkpoint(tiny: MakeConfig, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    donor = skipnets.create_model("densenet_bc40_k12", block_config=(2, 2), growth_rate=4, num_classes=5)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    config = tiny(weights=tmp_path / "donor.safetensors")
    prepared = prepare(config, images_in_memory(10, (8, 8, 3)))
    assert (prepared.config.recipe, prepared.config.lr) == ("auto", 0.03)
    assert prepared.config.channels == 3
    ours, theirs = prepared.model.state_dict(), donor.state_dict()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_classifier_s_weights_bring_their_network(tiny: MakeConfig, tmp_path: Path) -> None:
    model = skipnets.create_model("resnet20", block_config=(1, 1), width=8, num_classes=5, in_chans=1)
    donor = skipnets.Classifier.from_model(
        model, classes=list("abcde"), preprocessing=skipnets.Preprocessing(size=(8, 12), channels=1)
    )
    donor.save(tmp_path / "donor.safetensors")
    config = tiny(weights=tmp_path / "donor.safetensors", model=None, model_options={})
    prepared = prepare(config, images_in_memory(10, (8, 8, 3)))
    assert prepared.config.model == "resnet20"
    assert prepared.config.model_options == {"block_config": [1, 1], "width": 8}
    assert (prepared.config.channels, prepared.config.size) == (1, (8, 12))
    assert np.array_equal(prepared.model.state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])


@pytest.mark.parametrize(("classes", "kept"), [("ab", True), ("cd", False), ("ba", False)])
def test_a_head_of_as_many_but_other_classes_is_new(
    classes: str, kept: bool, tiny: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = skipnets.create_model("resnet20", block_config=(1, 1), width=8, num_classes=2, in_chans=1)
    donor = skipnets.Classifier.from_model(
        model, classes=list(classes), preprocessing=skipnets.Preprocessing(size=(8, 8), channels=1)
    )
    donor.save(tmp_path / "donor.safetensors")
    config = tiny(weights=tmp_path / "donor.safetensors", model=None, model_options={})
    started = prepare(config, images_in_memory(10, (8, 8))).model
    assert torch.equal(started.get_parameter("conv1.weight"), model.get_parameter("conv1.weight"))
    assert torch.equal(started.get_parameter("fc.weight"), model.get_parameter("fc.weight")) == kept
    said = f"head re-initialized: it is for other classes: {', '.join(classes)}"
    assert any(record.message.endswith(said) for record in caplog.records) == (not kept)


@pytest.mark.parametrize(
    ("asked", "capability", "precision"),
    [
        ("auto", None, "32-true"),
        ("auto", (7, 5), "16-mixed"),
        ("auto", (8, 0), "bf16-mixed"),
        ("32-true", (9, 0), "32-true"),
        ("16-mixed", (9, 0), "16-mixed"),
    ],
)
def test_the_precision_is_what_the_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, asked: Any, capability: tuple[int, int] | None, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision(asked, "auto") == precision
    assert resolve_precision("auto", "cpu") == "32-true"
    with pytest.raises(UserError, match=r"^precision=16-mixed: needs a GPU; on a CPU take 32-true or bf16"):
        resolve_precision("16-mixed", "cpu")


def test_a_data_set_without_readable_images_is_refused(tmp_path: Path, tiny: MakeConfig) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(
        UserError,
        match=r"^data: none of the \d+ training images looked at can be decoded; the first: .*\.png: not",
    ):
        prepare(tiny(size=None), open_dataset(tmp_path))


def test_a_fourth_channel_is_transparency_where_three_are_asked_for(tmp_path: Path, tiny: MakeConfig) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            pixels = np.full((8, 8, 3 + number % 2), 200, np.uint8)
            np.save(tmp_path / label / f"{number}.npy", pixels)
    images = open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"images of 3 and 4 channels are mixed, .*: --channels 3 takes"):
        prepare(tiny(size=8, block_execution="plain"), images)
    prepared = prepare(tiny(size=8, channels=3, block_execution="plain"), images)
    assert (prepared.config.channels, prepared.model.config.in_chans) == (3, 3)
    on_white = (200 * 200 + 55 * 255) / 255  # a value of 200 with an opacity of 200
    assert prepared.preprocessing.mean == pytest.approx([(200 + on_white) / 2 / 255] * 3, abs=0.03)


def test_ignored_weights_are_not_the_network_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = {"model": "resnet20", "model_options": {"block_config": [1, 1], "width": 4}}
    backbone = create_model("resnet20", block_config=(1, 1), width=4, num_classes=0).state_dict()
    torch.save(backbone | {"loss.weight": torch.ones(2)}, tmp_path / "w.pt")
    given = TrainConfig(
        data="x",
        out=Path("y"),
        weights=str(tmp_path / "w.pt"),
        weights_ignore=("loss.*",),
        block_execution="plain",
        epochs=1,
        **network,
    )
    images = images_in_memory(10, (8, 8, 3))
    prepared = prepare(given, images)
    assert torch.equal(prepared.model.state_dict()["conv1.weight"], backbone["conv1.weight"])
    assert prepared.config.weights_ignore == ("loss.*",)
    assert f"{given.weights}: head newly initialized: the source has none" in caplog.messages
    assert f"{given.weights}: ignored: loss.weight" in caplog.messages
    with pytest.raises(UserError, match=r"^weights_ignore=loss\.\*: needs weights$"):
        prepare(dataclasses.replace(given, weights=None), images)
