from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import skipnets
from skipnets.classifier import Classifier
from skipnets.data.augmentation import AUGMENTATIONS
from skipnets.data.dataset import ImageDataset
from skipnets.data.preprocessing import Preprocessing
from skipnets.duration import parse_duration
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.models.registry import ModelConfig, model_config
from skipnets.training import TrainConfig, budget, choice
from skipnets.training import prepare as prepare_module
from skipnets.training.choice import choose
from skipnets.training.prepare import prepare
from skipnets.training.supplied import Supplied

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def plain_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what is measured of the execution of a network that was chosen."""
    chosen = {"block_execution": "plain", "channels_last": True, "operators": {}}
    monkeypatch.setattr(prepare_module, "choose_execution", lambda *_: chosen)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int]]]:
    """What was measured; an image takes a microsecond for each of the pixels and the stem's channels."""
    seen: list[tuple[str, tuple[int, int]]] = []

    def seconds_per_image(
        config: ModelConfig, *, size: tuple[int, int], precision: str = "32-true", **_: Any
    ) -> float:
        if precision == "32-true":
            seen.append((config.name, size))
        return 1e-6 * size[0] * size[1] * getattr(config, "width", 16)

    monkeypatch.setattr(choice, "seconds_per_image", seconds_per_image)
    return seen


def images(count: int, *size: int) -> ImageDataset:
    return ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.array((["train"] * 8 + ["val", "test"]) * count)[:count],
        images=np.random.default_rng(0).integers(0, 200, (count, *size)).astype(np.uint8),
    )


def open_config(tiny: MakeConfig, **changes: Any) -> TrainConfig:
    nothing: dict[str, Any] = {
        "model": None,
        "model_options": {},
        "epochs": None,
        "batch_size": None,
        "augmentation": None,
    }
    return tiny(**(nothing | changes))


def test_more_time_is_a_larger_network_and_explicit_options_win(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    data = images(300, 24, 24)
    short = prepare(open_config(tiny, time="20s"), data).config
    long = prepare(open_config(tiny, time="5h"), data).config
    assert (short.time, long.time) == ("20s", "5h")
    assert short.model != long.model == measured[-1][0]
    assert short.epoch_plan == ((0, short.epochs),)
    given = {"model": "resnet20", "lr": 0.3, "ema": 0.5, "augmentation": "none", "batch_size": 7}
    fixed = prepare(open_config(tiny, time="20s", **given), data).config
    assert {name: getattr(fixed, name) for name in given} == given


@pytest.mark.parametrize(("factor", "precision"), [(0.5, "bf16-mixed"), (0.95, "32-true")])
def test_a_cpu_computes_in_sixteen_bits_where_that_is_faster(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, factor: float, precision: str
) -> None:
    monkeypatch.setattr(
        choice,
        "seconds_per_image",
        lambda *_, precision, **__: 0.01 * (factor if precision == "bf16-mixed" else 1),
    )
    data = images(300, 24, 24)
    assert prepare(open_config(tiny, time="20s"), data).config.precision == precision
    assert prepare(tiny(epochs=None, time="20s"), data).config.precision == precision
    assert prepare(open_config(tiny, time="20s", precision="32-true"), data).config.precision == "32-true"
    assert prepare(tiny(), data).config.precision == "32-true"


def test_a_plan_leaves_time_to_start_a_run_on_a_gpu(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "clock", lambda: 0.0)
    config = open_config(tiny, time="60s", model="resnet20", epoch_images=30)
    epochs = {}
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr(choice, "training_device", lambda _, kind=kind: torch.device(kind))
        epochs[kind] = prepare(config, images(300, 24, 24)).config.epochs
    assert epochs["cuda"] / epochs["cpu"] == pytest.approx(
        1 - budget.GPU_START_SECONDS / (60 - budget.finish_seconds(30, 0.0)), rel=0.02
    )


def test_without_time_and_epochs_a_time_follows_from_the_images(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    config = prepare(open_config(tiny), images(300, 24, 24)).config
    assert config.time == "60s"
    assert config.epochs > 1


def test_given_epochs_and_network_need_no_clock(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    prepared = prepare(tiny(), images(40, 8, 8))
    assert prepared.training_ends is None
    assert (prepared.config.time, prepared.config.epochs, prepared.config.epoch_plan) == (None, 3, ())
    assert measured == []


def test_given_epochs_choose_a_network_that_ends_in_time(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    data = images(300, 24, 24)
    few, many = (prepare(open_config(tiny, epochs=epochs), data).config.model for epochs in (2, 500))
    assert few != many


def test_large_images_are_shrunk_where_time_is_short(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    data = images(30, 200, 120)
    assert prepare(open_config(tiny, time="10s"), data).config.size == (64, 64)
    assert prepare(open_config(tiny, time="10s", size=(200, 100)), data).config.size == (200, 100)
    assert max(prepare(open_config(tiny, time="90h"), data).config.size) == 224


def test_wide_images_are_shown_wide(tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]) -> None:
    data = images(30, 60, 480)
    short, long = (prepare(open_config(tiny, time=time), data).config for time in ("10s", "90h"))
    assert short.size == (23, 181)  # the pixels of 64×64
    assert long.size == (56, 452)  # those of 160×160, the largest below their own of 170×170
    assert prepare(open_config(tiny, time="10s", size=64), data).config.size == (64, 64)
    assert prepare(tiny(recipe="scratch", epochs=1), data).config.size == (224, 224)


def test_reading_large_photographs_takes_its_part_of_the_time(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "clock", lambda: 0.0)
    monkeypatch.setattr(choice, "usable_cores", lambda: 4)
    data = images(300, 24, 24)
    open_ended = {"time": "100s", "model": "resnet20", "epoch_images": 24, "workers": 2}
    plain = prepare(open_config(tiny, **open_ended), data)
    monkeypatch.setattr(choice, "seconds_to_read", lambda *_, **__: 0.2)
    held = prepare(open_config(tiny, **open_ended), data)
    # 240 training and 30 validation images, each 0.2 s of one of two workers, once; test images at the end.
    assert held.reading.before == pytest.approx(27)
    assert plain.reading.before == 0
    share = held.config.epochs / plain.config.epochs
    assert share == pytest.approx((100 - 4 - 3 - 27) / (100 - 4), rel=0.02)
    read_again = prepare(open_config(tiny, **open_ended, augmentation="resized-crop"), data)
    assert read_again.reading.before == 0
    assert read_again.seconds_per_image == pytest.approx((held.seconds_per_image or 0) + 0.1)
    without_time = prepare(open_config(tiny, model="resnet20", workers=2), data).config
    assert without_time.time == "90s"  # a minute, and 0.1 s for each of 300


def test_speed_is_measured_at_the_size_of_ones_own_weights(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], tmp_path: Path
) -> None:
    model = create_model("resnet8_w16", num_classes=2)
    classifier = Classifier.from_model(model, classes=("x", "y"), preprocessing=Preprocessing((16, 24)))
    classifier.save(tmp_path / "own.safetensors")
    config = open_config(tiny, time="100s", weights=str(tmp_path / "own.safetensors"))
    prepared = prepare(config, images(300, 80, 80))
    assert prepared.preprocessing.size == (16, 24)
    assert set(measured) == {("resnet8_w16", (16, 24))}


def test_speed_is_measured_at_the_size_that_weights_or_recipes_state(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], tmp_path: Path
) -> None:
    data = images(300, 80, 80)
    model = create_model("resnet8_w16", num_classes=2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # as timm's repositories are
    stated = {"input_size": [3, 40, 48], "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    of_timm = open_config(tiny, time="100s", weights=str(tmp_path), model="resnet8_w16")
    assert prepare(of_timm, data).preprocessing.size == (40, 48)
    assert set(measured) == {("resnet8_w16", (40, 48))}

    measured.clear()
    model = create_model("resnet8_w16", num_classes=2, weights=tmp_path)
    handed_over = Supplied(model=model)
    prepared = prepare(open_config(tiny, time="100s"), data, supplied=handed_over)
    assert prepared.preprocessing.size == (40, 48)
    assert set(measured) == {("resnet8_w16", (40, 48))}
    assert prepared.config.lr == 0.03  # as of other weights

    measured.clear()
    small = images(300, 60, 60)
    prepared = prepare(open_config(tiny, time="100000s", recipe="paper-imagenet", batch_size=8), small)
    assert (prepared.config.model, prepared.preprocessing.size) == ("densenet121", (224, 224))
    assert set(measured) == {("densenet121", (224, 224))}


def test_what_reads_and_varies_images_one_by_one_is_taken_where_time_is_left_for_it(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "clock", lambda: 0.0)
    data = images(100, 80, 80)
    config = open_config(tiny, time="3000s", model="resnet20", workers=1)
    policy = {}
    for to_read in (0.0, 0.02, 0.2):
        monkeypatch.setattr(choice, "seconds_to_read", lambda *_, to_read=to_read, **__: to_read)
        prepared = prepare(config, data)
        passes = prepared.config.epochs * prepared.config.epoch_images / 80
        policy[to_read] = prepared.config.augmentation
        shown = 80 * passes * (1e-6 * 80 * 80 * 16 + (to_read if policy[to_read] == "trivial" else 0))
        assert shown + prepared.reading.before == pytest.approx(2990, rel=0.06)
    assert policy == {0.0: "trivial", 0.02: "trivial", 0.2: "crop-flip"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [16, 300, 5000, 40_000])
def test_every_decision_is_within_bounds(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, count: int, device: str
) -> None:
    """By the time that networks take on a slow or a fast device, for seconds and for hours."""
    speed = {"cpu": 4e-11, "cuda": 2e-14}[device]

    def seconds_per_image(config: ModelConfig, *, size: tuple[int, ...], **_: Any) -> float:
        blocks = sum(config.block_config)
        return 1e-6 + speed * np.prod(size) * blocks * getattr(config, "width", 16) ** 2

    monkeypatch.setattr(choice, "seconds_per_image", seconds_per_image)
    monkeypatch.setattr(choice, "training_device", lambda _: torch.device(device))
    monkeypatch.setattr(budget, "clock", lambda: 0.0)
    data = images(count, 1, 1)
    train, val, test = (len(data.split(name)) for name in ("train", "val", "test"))
    for side, time in itertools.product((8, 32, 64, 224), ("20s", None, "2h")):
        found = choose(
            open_config(tiny, time=time),
            data,
            sides=(side, side),
            channels=3,
            default_model="resnet18",
            network=lambda name: model_config(name, num_classes=2, in_chans=3),
            precision="32-true",
            pretrained=False,
            started=0.0,
        )
        values, each = found.values, found.seconds_per_image
        assert each is not None
        seconds = parse_duration(values["time"])
        assert 60 <= seconds <= 3600 or time is not None
        epochs, epoch_images = values["epochs"], values["epoch_images"]
        assert 1 <= epochs <= budget.MOST_EPOCHS
        assert epoch_images >= min(values["batch_size"], train)
        finish = budget.finish_seconds(test, each)
        validation = val / 3 * each
        if finish + 2 * validation < seconds / 2:  # otherwise it is said to be too short
            assert epochs * (epoch_images * each + validation) + finish <= 1.02 * seconds
            assert epochs * epoch_images * each > 0.4 * (seconds - finish) - budget.GPU_START_SECONDS
        assert 0 < values["warmup"] < epochs / 4
        size = values.get("size", (side, side))
        assert min(size) >= min(side, 64)
        assert max(size) <= max(1.2 * side, 64)
        # The rate follows the batch.
        assert 0.05 < values["lr"] / (values["batch_size"] / 128) ** 0.75 < 0.25
        policy = AUGMENTATIONS[values["augmentation"]].policy
        assert policy is None or epochs * epoch_images / train >= 150


def test_a_recipe_by_name_takes_a_time_too(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    config = prepare(tiny(recipe="scratch", epochs=None, time="20s"), images(40, 8, 8)).config
    assert (config.recipe, config.time, config.augmentation) == ("scratch", "20s", "none")
    assert set(measured) == {("densenet_bc40_k12", (8, 8))}


def test_speedrun_brings_its_network(tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]) -> None:
    config = prepare(open_config(tiny, recipe="speedrun", time="20s"), images(300, 32, 32)).config
    assert (config.model, config.whiten_stem, config.batch_size) == ("resnet8_w64", True, 128)
    assert set(measured) == {("resnet8_w64", (32, 32))}
    own = prepare(open_config(tiny, recipe="speedrun", epochs=2, model="resnet8_w16"), images(40, 32, 32))
    assert (own.config.model, own.config.label_smoothing) == ("resnet8_w16", 0.2)


def test_processes_that_train_together_decide_alike(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    first, second = (
        prepare(open_config(tiny, time="20s", devices=2), images(300, 24, 24), started=started)
        for started in (None, -5.0)
    )
    assert first.config == second.config
    assert measured == []
    assert first.seconds_per_image is None  # what is assumed is not told as measured
    assert first.config.model == "resnet8_w16"


def test_time_and_epochs_exclude_one_another(tiny: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"^time='5m': must be given without epochs=3$"):
        prepare(tiny(time="5m"), images(40, 8, 8))


def test_cached_imagenet_weights_start_color_photographs(
    tiny: MakeConfig,
    measured: list[tuple[str, tuple[int, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[tuple[str, str | None]] = []

    def create_model(name: str, *, weights: str | None, **fields: Any) -> Any:
        loaded.append((name, weights))
        return skipnets.create_model(name, **fields)

    monkeypatch.setattr(prepare_module, "create_model", create_model)
    monkeypatch.setattr(prepare_module, "is_cached", lambda name: name == "resnet18")
    photographs, small = images(30, 80, 70, 3), images(30, 40, 30, 3)
    config = prepare(open_config(tiny, time="20s"), photographs).config
    assert (config.weights, config.model, config.lr) == ("imagenet", "resnet18", 0.01)
    assert set(measured) == {("resnet18", (224, 224))}
    for data, changes in ((small, {}), (photographs, {"recipe": "scratch"}), (photographs, {"size": 32})):
        prepare(open_config(tiny, time="20s", **changes), data)
    assert [weights for _, weights in loaded] == ["imagenet", None, None, None]


@pytest.mark.parametrize("devices", ["auto", "0,", -1, "1"])
def test_one_device_is_measured_however_it_is_named(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], devices: int | str
) -> None:
    prepared = prepare(open_config(tiny, time="20s", devices=devices), images(300, 24, 24))
    assert measured
    assert prepared.seconds_per_image is not None
    assert prepared.seconds_per_image > 24 * 24 * 16e-6


def test_the_number_of_epochs_is_that_of_epochs_of_the_given_size(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]]
) -> None:
    data = images(300, 24, 24)
    small, large = (
        prepare(tiny(epochs=None, time="60s", epoch_images=count), data).config for count in (50, 500)
    )
    assert (small.epoch_images, large.epoch_images) == (50, 500)
    assert 0.8 < small.epochs * (50 + 10) / (large.epochs * (500 + 10)) < 1.25


def test_whitening_asks_for_random_weights(
    tiny: MakeConfig, measured: list[tuple[str, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "is_cached", lambda name: name == "resnet18")
    config = prepare(open_config(tiny, time="20s", whiten_stem=True), images(30, 80, 70, 3)).config
    assert (config.weights, config.whiten_stem) == (None, True)
    with pytest.raises(UserError, match=r"^whiten_stem: must be given without weights=imagenet"):
        prepare(tiny(whiten_stem=True, weights="imagenet"), images(30, 80, 70, 3))
