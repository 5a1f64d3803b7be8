"""Cross-validation: folds, what is joined of them, and the ensemble."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from scipy.special import softmax

import skipnets
from skipnets.data.dataset import ImageDataset
from skipnets.data.splits import read_split_rows
from skipnets.duration import parse_duration
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import (
    Run,
    TrainConfig,
    TrainingInterrupted,
    budget,
    choice,
    folds,
    resume,
    train,
    trainer,
)
from skipnets.training.run import write_config
from skipnets.training.task import ClassificationTask

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def data(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' folder with a test split: 30 images a class in train and 10 in test."""
    root = tmp_path_factory.mktemp("folds") / "digits"
    for digit in range(3):
        for number, image in enumerate(sorted((digits_folder / str(digit)).iterdir())):
            folder = root / ("train" if number < 30 else "test") / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / image.name)
    return root


def settings(data: Path, out: Path, **changes: object) -> TrainConfig:
    fields = {
        "data": data,
        "out": out,
        "folds": 3,
        "model": "densenet_bc40_k12",
        "model_options": {"block_config": [2, 2], "growth_rate": 4},
        "epochs": 4,
        "batch_size": 16,
        "augmentation": "none",
        "ema": 0,
        "workers": 0,
        "accelerator": "cpu",
        # Nothing is measured.
        "recipe": "scratch",
        "block_execution": "plain",
        "channels_last": False,
        "lr": 0.05,
    }
    return TrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with three folds."""
    return train(settings(data, tmp_path_factory.mktemp("runs") / "run"))


def test_the_folder_holds_folds_the_ensemble_and_out_of_fold_predictions(whole: Run) -> None:
    assert {path.name for path in whole.folder.iterdir()} == {
        *("run.yaml", "environment.json", "splits.csv", "model.safetensors", "fold-1", "fold-2", "fold-3"),
        *("evaluation.json", "predictions.parquet", "confusion.png", "test"),
    }
    assert [fold.folder.name for fold in whole.folds] == ["fold-1", "fold-2", "fold-3"]
    assert all(len(fold.rows) == 4 and fold.scores["images"] == 30 for fold in whole.folds)
    rows = read_split_rows(whole.splits)
    assert sorted(row.fold for row in rows) == [""] * 30 + ["1"] * 30 + ["2"] * 30 + ["3"] * 30
    assert {row.split for row in rows if row.fold} == {"train"}
    configs = [yaml.safe_load(fold.config_file.read_text()) for fold in whole.folds]
    assert len({str(config["mean"]) for config in configs}) == 1
    assert [config["seed"] for config in configs] == [0, 1, 2]


def test_every_image_has_the_prediction_of_the_one_model_that_did_not_see_it(whole: Run, data: Path) -> None:
    table = pyarrow.parquet.read_table(whole.folder / "predictions.parquet").to_pydict()
    fold_of = {row.path: row.fold for row in read_split_rows(whole.splits) if row.fold}
    assert dict(zip(table["path"], map(str, table["fold"]), strict=True)) == fold_of
    for number, fold in enumerate(whole.folds, start=1):
        seen = {row.path for row in read_split_rows(fold.splits) if row.split != "test"}
        held_out = [name for name, its in fold_of.items() if its == str(number)]
        assert not seen & set(held_out)
        assert seen | set(held_out) == set(fold_of)
        classifier = skipnets.load(fold, runtime="torch")
        [prediction] = classifier.predict([data / held_out[0]])
        position = table["path"].index(held_out[0])
        assert table[f"p:{prediction.label}"][position] == pytest.approx(prediction.probability, abs=1e-5)
    assert whole.scores["accuracy"] == np.mean(
        [label == prediction for label, prediction in zip(table["label"], table["prediction"], strict=True)]
    )


def test_the_ensemble_is_one_classifier_and_is_evaluated_once_on_test_images(whole: Run, data: Path) -> None:
    ensemble = skipnets.load(whole)
    assert ensemble.ensemble == 3
    assert ensemble.provenance["images"] == {"train": 90, "val": 0, "test": 30}
    images = sorted((data / "test" / "1").iterdir())
    batch = ensemble.preprocess(images)
    members = [softmax(skipnets.load(fold, runtime="torch").logits(batch), axis=1) for fold in whole.folds]
    np.testing.assert_allclose(ensemble.probabilities(batch), np.mean(members, axis=0), rtol=1e-4, atol=1e-6)
    evaluation = evaluate(whole)
    assert evaluation.known == {"train": 0, "val": 0, "test": 30}
    tested = json.loads((whole.folder / "test" / "evaluation.json").read_text())
    assert tested["accuracy"] == evaluation.metrics.accuracy == ensemble.provenance["scores"]["test_accuracy"]
    text = str(whole)
    assert "the ensemble of the 3 folds' models" in text
    assert "ensemble on test images" in text


def test_an_interrupted_run_goes_on_at_its_fold_and_comes_to_the_same(
    whole: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.training_step
    steps = iter(range(10**9))

    def training_step(self: ClassificationTask, batch: object, batch_idx: int) -> object:
        loss = original(self, batch, batch_idx)  # type: ignore[arg-type]
        if next(steps) == 19:  # 3 steps an epoch, 12 a fold: in the third epoch of the second
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", training_step)
        with pytest.raises(
            TrainingInterrupted, match=r"fold-2/.*; go on with: skipnets train --resume \S+/run$"
        ):
            train(settings(data, tmp_path / "run"))
    run = Run(tmp_path / "run")
    assert [fold.evaluation.exists() for fold in run.folds] == [True, False, False]
    image = min((data / "train" / "0").iterdir())
    pixels = image.read_bytes()
    image.write_bytes(pixels + b"\0")
    with pytest.raises(UserError, match="are not those that the run began with"):
        resume(run.folder)
    image.write_bytes(pixels)
    first = run.folds[0].model.stat().st_mtime_ns
    assert len(run.folds[1].rows) == 2
    resumed = resume(run.folder)
    assert run.folds[0].model.stat().st_mtime_ns == first
    tensors, expected = (read_model_file(each.model).tensors() for each in (resumed, whole))
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)
    assert resumed.scores == whole.scores | {"classifier": str(resumed.folder)}
    with pytest.raises(UserError, match="is complete"):
        resume(run.folder)


@pytest.mark.slow
def test_an_earlier_run_s_folds_can_be_repeated(whole: Run, data: Path, tmp_path: Path) -> None:
    again = train(settings(data, tmp_path / "again", epochs=1, splits=whole.splits, seed=7))
    fold_of = [{row.path: row.fold for row in read_split_rows(run.splits)} for run in (whole, again)]
    assert fold_of[0] == fold_of[1]


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"devices": 2}, r"^devices: folds are trained one after another on one device, not on 2$"),
        ({"folds": 40}, r'^folds=40: .* has classes with fewer images than folds: "0" has 30'),
        ({"fractions": (0.8, 0.0, 0.2)}, r"^fractions=.*: must leave images to choose the best epoch on"),
        ({"splits": tmp_path / "none.csv"}, r"none\.csv: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            train(settings(data, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"^folds=1: must be at least 2"):
        settings(data, tmp_path / "run", folds=1)


def test_processes_of_torchrun_do_not_train_folds_together(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^devices: folds are trained .* on one device, not on 2$"):
        train(settings(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_folds_that_took_longer_than_asked_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "train_folds", lambda config, **_: Run(config.out))
    train(settings(tmp_path, tmp_path / "run", epochs=None, time="10s"), started=budget.clock() - 60)
    assert re.search("the run took .* instead of 10 s", capsys.readouterr().err)


def test_the_first_fold_gets_a_share_of_the_time_and_the_others_its_epochs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    asked: list[TrainConfig] = []
    said: list[str] = []

    def train_on(run: Run, config: TrainConfig, _: object) -> Run:
        nonlocal now
        asked.append(config)
        now += 40
        if len(asked) == 1:  # fewer epochs fitted than were planned at first
            run.folder.mkdir()
            write_config(run, replace(config, epochs=7, epoch_plan=((0, 9), (2, 7)), warmup=0.7))
        return run

    monkeypatch.setattr(budget, "clock", lambda: now)
    monkeypatch.setattr(choice, "seconds_per_image", lambda *_, **__: 1e-3)
    monkeypatch.setattr(folds, "join_folds", lambda *_: None)
    config = settings(data, tmp_path / "run", epochs=None, time="94s")
    run = folds.train_folds(config, started=90, train_on=train_on, say=said.append)
    first, *others = asked
    # 10 s have passed before, and 4 s and 3 networks' predictions of 30 images come after.
    assert parse_duration(first.time or "") == pytest.approx(80 / 3, abs=0.2)
    assert (first.epochs, first.epoch_plan, first.warmup) == (None, (), None)
    assert [(each.epochs, each.epoch_plan, each.warmup) for each in (*others, run.config)] == [
        (7, ((0, 9), (2, 7)), 0.7)
    ] * 3
    assert run.config.time == "94s"
    assert [line for line in said if re.search(r"as many epochs, 7, .* ends at .*, in 1 min 20 s$", line)]


def test_folds_may_have_other_epochs_than_were_planned(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a time: a complete fold is not trained again, and more epochs are more than any fold has."""
    run = Run(tmp_path / "run")

    with monkeypatch.context() as patch:
        patch.setattr(folds, "join_folds", lambda *_: interrupt())
        with pytest.raises(TrainingInterrupted):
            train(settings(data, run.folder, epochs=1, folds=2))
    write_config(run, replace(run.config, time="60s", epoch_plan=((0, 1),)))
    first = replace(run.fold(1).config, time="30s", epochs=3, epoch_plan=((0, 1), (1, 3)))
    write_config(run.fold(1), first)
    rows = run.fold(2).rows
    resume(run.folder)
    assert run.fold(1).config.epochs == 3
    assert run.fold(2).rows == rows
    with pytest.raises(UserError, match=r"^epochs=3: must be more than the 3"):
        resume(run.folder, epochs=3)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_all_folds_can_be_extended(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"schedule": "constant", "warmup": 0.0, "folds": 2}
    longer = train(settings(data, tmp_path / "longer", epochs=2, **options))
    run = train(settings(data, tmp_path / "run", epochs=1, **options))
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", lambda *_: interrupt())
        with pytest.raises(TrainingInterrupted):
            resume(run.folder, epochs=2)
    extended = resume(run.folder, epochs=2)  # the same again
    assert extended.scores == longer.scores | {"classifier": str(run.folder)}
    with pytest.raises(UserError, match=r"^epochs=2: must be more than the 2"):
        resume(run.folder, epochs=2)


def test_folds_of_several_labels_are_joined_and_averaged(label_folds_run: Run) -> None:
    run = label_folds_run
    table = pyarrow.parquet.read_table(run.predictions).to_pydict()
    folder = Path(run.config.data).parent
    for number, fold in enumerate(run.folds, start=1):
        classifier = skipnets.load(fold, runtime="torch", device="cpu")
        held_out = [index for index, its in enumerate(table["fold"]) if its == number]
        assert not {row.path for row in read_split_rows(fold.splits) if row.split != "test"} & {
            table["path"][index] for index in held_out
        }
        [prediction] = classifier.predict([folder / table["path"][held_out[0]]])
        for name, probability in prediction.ranking:
            assert table[f"p:{name}"][held_out[0]] == pytest.approx(probability, abs=1e-5)
        assert run.scores["folds"][number - 1]["thresholds"] == pytest.approx(classifier.thresholds)
    groups = dict(zip(table["group"], table["fold"], strict=True))
    assert all(groups[g] == f for g, f in zip(table["group"], table["fold"], strict=True))

    ensemble = skipnets.load(run, runtime="torch", device="cpu")
    batch = ensemble.preprocess([folder / "079.png"])
    expected = np.mean([1 / (1 + np.exp(-each.logits(batch))) for each in ensemble.members], axis=0)
    np.testing.assert_allclose(ensemble.probabilities(batch), expected, rtol=1e-5)
    assert ensemble.thresholds == pytest.approx([row["threshold"] for row in run.scores["classes"]])
    assert ensemble.provenance["thresholds"]["split"] == "out-of-fold"
    scores = ensemble.provenance["scores"]
    tested = evaluate(ensemble, split="test")
    assert scores["test_auroc"] == tested.metrics.macro["auroc"]
    assert scores["out_of_fold_auroc"] == run.scores["macro"]["auroc"]["value"]
    assert "ensemble on test images  mean AUROC" in str(run)


def test_folds_of_numbers_are_joined_and_averaged(number_folds_run: Run) -> None:
    run = number_folds_run
    table = pyarrow.parquet.read_table(run.predictions).to_pydict()
    folder = Path(run.config.data).parent
    first = None
    for number, fold in enumerate(run.folds, start=1):
        model = skipnets.load(fold, runtime="torch", device="cpu")
        held_out = table["fold"].index(number)
        [prediction] = model.predict([folder / table["path"][held_out]])
        for name, value in prediction.values:  # type: ignore[attr-defined]
            assert table[f"p:{name}"][held_out] == pytest.approx(value, rel=1e-4, abs=1e-4)
        first = first or model.scales
        assert model.scales == first
    groups = dict(zip(table["group"], table["fold"], strict=True))
    assert all(groups[g] == f for g, f in zip(table["group"], table["fold"], strict=True))

    ensemble = skipnets.load(run, runtime="torch", device="cpu")
    batch = ensemble.preprocess([folder / "059.png"])
    expected = np.mean([each.values(batch) for each in ensemble.members], axis=0)
    np.testing.assert_allclose(ensemble.values(batch), expected, rtol=1e-4)
    scores = ensemble.provenance["scores"]
    tested = evaluate(ensemble, split="test")
    assert scores["test_mae"] == pytest.approx(tested.metrics.targets["mae"].tolist(), rel=1e-6)  # type: ignore[attr-defined, union-attr]
    assert scores["out_of_fold_mae"] == [row["mae"] for row in run.scores["targets"]]
    assert "ensemble on test images  MAE of radius mm" in str(run)
    # Of every third image the level is not known.
    assert [row["images"] for row in run.scores["targets"]] == [44, 44 - 15]
    assert sum(value is None for value in table["y:<b>level</b>"]) == 15


def test_a_resumed_run_keeps_copies_together_in_every_fold(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "digits"
    shutil.copytree(data / "train", copied)
    for image in sorted(copied.glob("*/0*.png")):
        shutil.copy(image, image.with_name(f"copy of {image.name}"))
    seen: list[list[tuple[str, str]]] = []

    def stopped(fold: Run, config: TrainConfig, dataset: ImageDataset, **_: object) -> None:
        seen.append(sorted(zip(dataset.names, dataset.splits.tolist(), strict=True)))
        if len(seen) in (1, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_on", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(settings(copied, tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run")
    assert seen[0] == seen[1]
    split_of = dict(seen[1])
    pairs = [(name, name.replace("copy of ", "")) for name in split_of if "copy of" in name]
    assert len(pairs) == 30
    assert all(split_of[one] == split_of[other] for one, other in pairs)
