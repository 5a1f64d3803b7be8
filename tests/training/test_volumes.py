"""Runs on signals and volumes that a program hands over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import skipnets
from skipnets.deploy import export_model
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.training import Run, TrainConfig, resume, train
from skipnets.training.supplied_data import as_dataset

SIDES = (10, 9, 11)


class Blobs:
    """Volumes (C, D, H, W) with a bright blob at one end or the other."""

    classes = ("near", "far")

    def __init__(self, count: int = 40, sides: tuple[int, ...] = SIDES) -> None:
        generator = np.random.default_rng(0)
        self.volumes = generator.normal(0, 10, (count, 1, *sides)).astype(np.float32) - 500
        for index, volume in enumerate(self.volumes):
            volume[(0, *[slice(0, 4) if index % 2 == 0 else slice(-4, None)] * len(sides))] += 200

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.volumes[index]), index % 2

    def __len__(self) -> int:
        return len(self.volumes)


def network(dims: int) -> nn.Module:
    return skipnets.create_model(
        "densenet_bc40_k12", dims=dims, in_chans=1, num_classes=2, block_config=(2, 2), growth_rate=4
    )


def config(out: Path, **fields: Any) -> TrainConfig:
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "workers": 0, "accelerator": "cpu", "ema": 0}
    return TrainConfig(data="blobs", out=out, recipe="scratch", **options | fields)


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("volumes") / "run"
    learning = {"epochs": 5, "batch_size": 4, "block_execution": "linear"}
    return train(config(out, **learning), model=network(3), dataset=Blobs())


def test_a_run_on_volumes_learns_and_its_file_predicts(volume_run: Run) -> None:
    assert volume_run.scores["accuracy"] == 1
    assert volume_run.config.model_options["dims"] == 3
    assert tuple(volume_run.config.size) == SIDES
    classifier = skipnets.load(volume_run)
    assert (classifier.architecture["dims"], classifier.preprocessing.size) == (3, SIDES)
    assert classifier.model.config.dims == 3
    blobs = Blobs(6)
    one = classifier.predict(blobs.volumes[1][0])
    several = classifier.predict([torch.from_numpy(each) for each in blobs.volumes])
    assert [each.label for each in one] == ["far"]
    assert [each.label for each in several] == ["near", "far"] * 3
    assert classifier.embed(list(blobs.volumes[:, 0])).shape == (6, classifier.model.num_features)
    low, high = np.array(classifier.preprocessing.window[0])
    scaled = np.clip((blobs.volumes - low) / (high - low), 0, 1)
    expected = (scaled - classifier.preprocessing.mean[0]) / classifier.preprocessing.std[0]
    batch = classifier.preprocess([each[0] for each in blobs.volumes])
    np.testing.assert_allclose(batch, expected, atol=1e-4)
    with torch.no_grad():
        logits = classifier.model.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(classifier.logits(batch), logits, atol=1e-5)
    wrong = classifier.predict([np.zeros((3, 3), np.float32)])[0]
    assert wrong.error is not None
    assert "must be (D, H, W) of numbers for a volume" in wrong.error
    # One of another size is resized.
    larger = np.repeat(np.repeat(np.repeat(blobs.volumes[1][0], 2, 0), 2, 1), 2, 2)
    assert classifier.predict(larger)[0].label == "far"
    with pytest.raises(UserError, match=r"batch: must be \(N, 1, D, H, W\), not \(2, 1, 8, 8\)"):
        classifier.logits(np.zeros((2, 1, 8, 8), np.float32))


def test_views_of_volumes_are_averaged(volume_run: Run) -> None:
    plain, flipped = skipnets.load(volume_run), skipnets.load(volume_run, tta="flip")
    batch = plain.preprocess([each[0] for each in Blobs(4).volumes])
    wanted = (plain.probabilities(batch) + plain.probabilities(batch[:, :, :, :, ::-1].copy())) / 2
    np.testing.assert_allclose(flipped.probabilities(batch), wanted, atol=1e-6)
    assert np.abs(wanted - plain.probabilities(batch)).max() > 1e-6
    assert evaluate(flipped, as_dataset(Blobs(6), dims=3), split="all").to_dict()["tta"] == "flip"
    signals = skipnets.Classifier.from_model(
        network(1), classes=["a", "b"], preprocessing=skipnets.Preprocessing((40,), channels=1)
    )
    signals.save(volume_run.folder / "signals.safetensors")
    with pytest.raises(UserError, match="tta=flip: must be none or crops for signals"):
        skipnets.load(volume_run.folder / "signals.safetensors", tta="flip")


def test_the_sheet_of_the_first_batch_shows_middle_slices(volume_run: Run) -> None:
    assert volume_run.batches.exists()
    assert volume_run.curves.exists()
    assert volume_run.confusion.exists()


@pytest.mark.slow
def test_an_export_of_volumes_computes_the_same(volume_run: Run, tmp_path: Path) -> None:
    classifier = skipnets.load(volume_run)
    batch = classifier.preprocess([each[0] for each in Blobs(4).volumes])
    for file_format in ("onnx", "pt2"):
        path = tmp_path / f"model.{file_format}"
        export = export_model(volume_run.model, path, file_format=file_format)  # type: ignore[arg-type]
        assert export.check.largest_difference < 1e-4
        exported = skipnets.load(path)
        np.testing.assert_allclose(exported.logits(batch), classifier.logits(batch), atol=1e-4)
    export_model(skipnets.load(volume_run, tta="flip"), tmp_path / "flip.onnx")
    flipped = skipnets.load(volume_run, tta="flip").logits(batch)
    np.testing.assert_allclose(skipnets.load(tmp_path / "flip.onnx").logits(batch), flipped, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (images,) = session.get_inputs()
    assert images.shape == ["batch", 1, "depth", "height", "width"]
    logits, _ = session.run(None, {images.name: batch})
    np.testing.assert_allclose(logits, classifier.logits(batch), atol=1e-4)


def test_what_takes_images_alone_says_so(volume_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runtime=native: takes networks for images, not dims=3"):
        skipnets.load(volume_run, runtime="native")
    for options, message in (
        ({"augmentation": "trivial"}, "augmentation='trivial': must be one of none, flip, .* for volumes"),
        ({"size": (8, 8)}, "size=8 8: must be one number, or depth, height and width"),
        ({"channels": 3}, "channels=3: must be left out or 1, as the volumes are"),
        ({"whiten_stem": True}, "whiten_stem=True: must be left out with volumes"),
    ):
        with pytest.raises(UserError, match=message):
            train(config(tmp_path / "run", **options), model=network(3), dataset=Blobs(8))
    with pytest.raises(UserError, match="dims=3: digits holds images, not volumes"):
        train(
            TrainConfig(data="digits", out=tmp_path / "run", model="resnet8_w16", model_options={"dims": 3})
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_signals_train_and_a_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="skipnets")
    options = {"model": "resnet8_w16", "model_options": {"block_config": [1, 1], "width": 4, "dims": 1}}
    blobs = Blobs(40, (24,))
    run = train(config(tmp_path / "run", **options), dataset=blobs)
    assert "batches.png: not drawn, as it would show signals" in caplog.text
    assert run.config.model_options["dims"] == 1
    again = resume(run.folder, epochs=4, dataset=blobs)
    assert len(again.rows) == 4
    assert json.loads(run.evaluation.read_text())["images"] == again.scores["images"] > 0
    assert skipnets.load(again).predict(blobs.volumes[3])[0].label in blobs.classes


@pytest.mark.slow
def test_a_run_on_volumes_learns_from_a_teacher(volume_run: Run, tmp_path: Path) -> None:
    taught = config(tmp_path / "run", teacher=str(volume_run.folder), teacher_share=1.0, size=8, epochs=8)
    run = train(taught, model=network(3), dataset=Blobs())
    assert run.scores["accuracy"] > 0.8
    assert skipnets.load(run).preprocessing.size == (8, 8, 8)
    with pytest.raises(UserError, match=r"teacher=.*: must take signals, as the run does, not volumes"):
        train(
            config(tmp_path / "no", teacher=str(volume_run.folder)), model=network(1), dataset=Blobs(8, (30,))
        )


@pytest.mark.slow
def test_a_network_of_one_s_own_takes_volumes(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv3d(1, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.body(x).relu().mean((2, 3, 4)))
            return logits

    mixed = config(tmp_path / "run", epochs=1, mixup=0.2, cutmix=1.0)
    run = train(mixed, model=Own(), dataset=Blobs(20))
    assert skipnets.load(run, model=Own()).preprocessing.size == SIDES


def test_a_dataset_that_is_none_is_said(tmp_path: Path) -> None:
    good = Blobs(8)
    cases: list[tuple[Callable[[int], Any], str]] = [
        (lambda _: np.zeros((5, 5), np.float32), r"must be \(D, H, W\) of numbers, or have channels as well"),
        (lambda _: np.full(SIDES, np.inf), r"dataset: dataset\[0\] has infinite values"),
        (
            lambda index: np.zeros((4 + index % 2, 5, 5)),
            "its volumes must be of one size, not 4×5×5×1, 5×5×5×1; a",
        ),
        (lambda _: "volume.nii", "must be an array or a tensor, not str"),
    ]
    for make, message in cases:
        samples = [(make(index), good[index][1]) for index in range(8)]
        with pytest.raises(UserError, match=message):
            train(config(tmp_path / "run"), model=network(3), dataset=samples)
