"""Training to predict numbers: losses, a whole run, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import mean_absolute_error, r2_score
from tests.helpers.disks import TARGETS, write_disks

from skipnets.classifier import RegressionPrediction, describe, load
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.splits import read_splits
from skipnets.data.targets import targets_from_texts
from skipnets.errors import UserError
from skipnets.evaluation import RegressionEvaluation, evaluate
from skipnets.insight import explain
from skipnets.scaling import TargetScale
from skipnets.training import Run, TrainConfig
from skipnets.training.batches import read_batch
from skipnets.training.curves import headline_name, headline_text, loss_note
from skipnets.training.multi_label import with_label_defaults
from skipnets.training.prepare import prepare
from skipnets.training.regression import (
    LOSSES,
    NumberLoss,
    RegressionTask,
    TargetScores,
    check_not_regression,
    scaled_dataset,
    target_scales,
    with_regression_defaults,
)
from skipnets.training.trainer import resume, train

# Nothing is measured before training begins.
SMALL_NETWORK: dict[str, Any] = {
    "model": "resnet8_w16",
    "model_options": {"width": 4},
    "block_execution": "plain",
    "channels_last": False,
    "operators": {},
}
SHORT_RUN = SMALL_NETWORK | {"batch_size": 8, "augmentation": "none", "workers": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    path = write_disks(tmp_path_factory.mktemp("disks") / "data", 40)
    return find_dataset(path, options=DataOptions(targets=TARGETS))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_their_formulas(name: str) -> None:
    outputs, targets = 3 * torch.randn(2, 20, 2, dtype=torch.float64)
    error = (outputs - targets).abs()
    expected = {
        "l1": error,
        "l2": error**2,
        "huber": torch.where(error <= 1, error**2 / 2, error - 0.5),
    }[name]
    torch.testing.assert_close(LOSSES[name]()(outputs, targets), expected.mean())


def test_what_is_not_known_counts_for_no_loss_and_has_no_gradient() -> None:
    outputs = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(6, 2, dtype=torch.float64)
    targets[::2, 1] = float("nan")
    loss = NumberLoss("huber")(outputs, targets)
    pairs = [(row, target) for row in range(6) for target in range(2) if target == 0 or row % 2]
    each = [torch.nn.functional.huber_loss(outputs[pair], targets[pair]) for pair in pairs]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad[::2, 1].tolist() == [0, 0, 0]
    assert (outputs.grad[1::2] != 0).all()
    assert NumberLoss("l2")(outputs, torch.full_like(targets, float("nan"))) == 0


def test_scores_of_an_epoch_are_those_of_all_batches_together_in_the_targets_units() -> None:
    outputs, targets = torch.randn(2, 20, 1)
    scores = TargetScores((TargetScale(mean=40.0, std=5.0),))
    for part in (slice(0, 16), slice(16, 20)):
        scores.update(outputs[part], targets[part])
    values = scores.compute()
    assert values["val_mae"] == pytest.approx(5 * mean_absolute_error(targets, outputs), rel=1e-5)
    assert values["val_r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-5)


def test_a_run_learns_and_its_file_holds_the_scales_of_the_training_images(number_run: Run) -> None:
    rows = number_run.rows
    best = min(rows, key=lambda row: row.val_loss)
    assert number_run.best_epoch == best.epoch
    assert (best.val_r2 or 0) > (rows[0].val_r2 or 0)
    assert (best.val_accuracy, best.train_accuracy) == (None, None)
    metadata = describe(number_run.model)
    assert (metadata["task"], metadata["classes"]) == ("regression", list(TARGETS))
    splits = read_splits(number_run.splits)
    numbers = targets_from_texts([text for text, split in splits.values() if split == "train"])
    for scale, column in zip(metadata["scales"], numbers.T, strict=True):
        assert (scale["mean"], scale["std"]) == pytest.approx((column.mean(), column.std()))
    config = number_run.config
    assert (config.task, config.loss, config.best_by) == ("regression", "l2", "loss")
    assert config.target_mean == pytest.approx(numbers.mean(0))
    for row, limit in zip(number_run.scores["targets"], (0.8, 0.5), strict=True):
        assert row["r2"] > limit
    assert (number_run.folder / "scatter.png").exists()
    # The first batch shows the numbers in their units.
    shown = read_batch(number_run.batches)[0].labels
    assert [text.rpartition(" ")[0] for text, _ in shown] == list(TARGETS)
    assert float(shown[1][0].rpartition(" ")[2]) < -450


def test_predictions_are_in_the_targets_units_and_typed(number_run: Run) -> None:
    classifier = load(number_run, runtime="torch", device="cpu")
    images = [Path(number_run.config.data).with_name(f"{index:03}.png") for index in range(3)]
    predictions = classifier.predict([*images, Path(number_run.config.data)])
    batch = classifier.preprocess(images)
    scales = classifier.scales or ()
    outputs = classifier.logits(batch).astype(float)
    expected = outputs * [scale.std for scale in scales] + [scale.mean for scale in scales]
    np.testing.assert_allclose(classifier.values(batch), expected)
    for prediction, row in zip(predictions, expected, strict=False):
        assert isinstance(prediction, RegressionPrediction)
        assert dict(prediction.values) == pytest.approx(dict(zip(TARGETS, row, strict=True)))
        assert prediction.value == prediction.values[0][1]
        assert (prediction.label, prediction.ranking) == (None, ())
    failed = predictions[-1]
    assert isinstance(failed, RegressionPrediction)
    assert failed.error is not None
    assert (failed.values, failed.value) == ((), None)
    assert TARGETS[0] in str(predictions[0])
    assert "failed" in str(failed)
    with pytest.raises(UserError, match="probabilities: a regression has none"):
        classifier.probabilities(batch)


def test_views_of_an_image_are_averaged_as_numbers(number_run: Run) -> None:
    classifier = load(number_run, runtime="torch", device="cpu")
    batch = classifier.preprocess(Path(number_run.config.data).with_name("000.png"))
    mirrored = classifier.values(batch[..., ::-1].copy())
    plain = classifier.values(batch)
    classifier.tta = "flip"
    np.testing.assert_allclose(classifier.values(batch), (plain + mirrored) / 2, rtol=1e-5)


def test_maps_show_what_moves_a_number_away_from_the_mean(number_run: Run) -> None:
    classifier = load(number_run, runtime="torch", device="cpu")
    scales = classifier.scales or ()
    folder = Path(number_run.config.data).parent
    rows = (folder / "numbers.csv").read_text().splitlines()[1:]
    radius = [float(row.split(",")[2]) for row in rows]
    for index in (int(np.argmin(radius)), int(np.argmax(radius))):
        [maps] = explain(classifier, folder / f"{index:03}.png", method="integrated-gradients")
        assert [each.label for each in maps] == list(TARGETS)
        [prediction] = classifier.predict(folder / f"{index:03}.png")
        assert isinstance(prediction, RegressionPrediction)
        assert [each.value for each in maps] == pytest.approx([value for _, value in prediction.values])
        assert [each.raised for each in maps] == [
            each.value >= scale.mean for each, scale in zip(maps, scales, strict=True) if each.value
        ]
        assert all(each.probability is None for each in maps)
        # Attributions add up to the change of the output from the baseline, an image of the mean color.
        batch = classifier.preprocess(folder / f"{index:03}.png")
        change = (classifier.logits(batch) - classifier.logits(np.zeros_like(batch)))[0]
        for each, total in zip(maps, change, strict=True):
            assert each.grid.sum() == pytest.approx(total if each.raised else -total, rel=0.1, abs=0.05)
    assert maps[0].raised


def test_a_complete_run_is_extended(number_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(number_run.folder, folder)
    run = resume(folder, epochs=9)
    assert len(run.rows) == 9
    assert describe(run.model)["scales"] == describe(number_run.model)["scales"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutmix": 0.2}, "cutmix=0.2: must be 0 with numbers to predict, .* mixup mixes whole images"),
        ({"teacher": "runs/a", "teacher_temperature": 2.0}, "teacher_temperature=2: must be left out"),
        ({"imbalance": "weighted-loss"}, "imbalance=weighted-loss: must be left out with numbers"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1: must be left out with numbers"),
        ({"threshold": "f1"}, "threshold=f1: must be left out with numbers"),
        ({"best_by": "accuracy"}, "best_by=accuracy: must be one of loss, mae, r2"),
        ({"loss": "focal"}, "loss=focal: must be one of l1, l2, huber"),
        ({"task": "multi-label"}, "task=multi-label: disks has numbers to predict"),
        ({"ordinal": True}, "ordinal: must be given for whole numbers; radius mm is "),
        ({"target_std": (1.0,)}, r"target_std=\(1.0,\): must be 2"),
        ({"target_mean": (1.0,)}, r"target_mean=\(1.0,\): must be 2, one for each target"),
    ],
)
def test_options_for_classes_are_refused(
    disks: ImageDataset, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_regression_defaults(TrainConfig(data="disks", out=tmp_path, **changes), disks)


def test_options_for_numbers_are_refused_with_classes(disks: ImageDataset, tmp_path: Path) -> None:
    single = replace(disks, labels=np.zeros(len(disks), np.int64), regression=False)
    for changes in ({"loss": "l1"}, {"best_by": "mae"}, {"ordinal": True}, {"task": "regression"}):
        config = TrainConfig(data="disks", out=tmp_path, **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"^{next(iter(changes))}="):
            prepare(config, single)
    for changes in ({"target_mean": (1.0,)}, {"target_std": (2.0,)}):
        config = TrainConfig(data="disks", out=tmp_path, **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"^{next(iter(changes))}: must be given with numbers"):
            prepare(config, single)
    check_not_regression(with_label_defaults(TrainConfig(data="disks", out=tmp_path), single))


def test_a_target_of_one_value_is_refused(disks: ImageDataset, tmp_path: Path) -> None:
    labels = disks.labels.copy()
    labels[disks.splits == "train", 1] = -7.5
    with pytest.raises(UserError, match=r"targets=<b>level</b>: is -7.5 in all training images"):
        with_regression_defaults(TrainConfig(data="disks", out=tmp_path), replace(disks, labels=labels))


def test_numbers_that_are_too_near_to_one_another_are_refused(disks: ImageDataset, tmp_path: Path) -> None:
    labels = disks.labels.copy()
    labels[:, 1] *= 1e-200
    with pytest.raises(UserError, match=r"targets=<b>level</b>: .* differ by so little that they cannot be"):
        with_regression_defaults(TrainConfig(data="disks", out=tmp_path), replace(disks, labels=labels))


def test_grades_are_whole_in_every_split(disks: ImageDataset, tmp_path: Path) -> None:
    labels = np.rint(disks.labels)
    config = TrainConfig(data="disks", out=tmp_path, ordinal=True)
    assert with_regression_defaults(config, replace(disks, labels=labels)).ordinal
    labels[disks.splits == "test", 1] += 0.25
    with pytest.raises(UserError, match="ordinal: must be given for whole numbers; <b>level</b> is -"):
        with_regression_defaults(config, replace(disks, labels=labels))


def test_r2_chooses_no_epoch_where_it_is_undefined(disks: ImageDataset, tmp_path: Path) -> None:
    labels = disks.labels.copy()
    config = TrainConfig(data="disks", out=tmp_path, best_by="r2")
    labels[disks.splits == "val", 0] = 2.0
    assert with_regression_defaults(config, replace(disks, labels=labels)).best_by == "r2"
    labels[disks.splits == "val", 1] = -2.0
    with pytest.raises(UserError, match="best_by=r2: all validation images have the same numbers"):
        with_regression_defaults(config, replace(disks, labels=labels))


def test_images_are_not_enlarged_or_colored_by_default(disks: ImageDataset, tmp_path: Path) -> None:
    prepared = prepare(
        TrainConfig(
            data="disks",
            out=tmp_path,
            recipe="paper-imagenet",
            epochs=1,
            **SMALL_NETWORK,
        ),
        disks,
    )
    assert prepared.config.augmentation == "crop"
    assert "accuracies" not in loss_note(prepared.config)
    scales = target_scales(prepared.config, disks.split("train"))
    learned = scaled_dataset(disks, scales).split("train").labels
    assert learned.dtype == np.float32
    np.testing.assert_allclose(learned.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(learned.std(0), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_have_gradients_in_every_precision(
    disks: ImageDataset, tmp_path: Path, loss: str, dtype: torch.dtype
) -> None:
    config = TrainConfig(
        data="disks",
        out=tmp_path,
        epochs=1,
        **SMALL_NETWORK,
        loss=loss,  # type: ignore[arg-type]
    )
    prepared = prepare(config, disks)
    scales = target_scales(prepared.config, disks.split("train"))
    task = RegressionTask(prepared.model, prepared.config, scales).to(dtype)
    pixels = torch.randint(0, 256, (4, prepared.config.channels, 16, 16), dtype=torch.uint8)
    targets = torch.randn(4, 2, dtype=dtype)
    task.eval()
    expected = 2 * LOSSES[loss]()(task(task.normalize(pixels)), targets)
    value = task.training_step((pixels, targets, torch.arange(4)), 0)
    assert value.dtype == dtype
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_grades_of_images_in_memory_are_predicted_as_whole_numbers(tmp_path: Path) -> None:
    grades = np.repeat(np.arange(1.0, 5.0), 15)
    noise = np.random.default_rng(0).integers(0, 20, (60, 8, 8))
    dataset = ImageDataset(
        classes=("grade",),
        names=[f"{index:02}" for index in range(60)],
        labels=grades[:, None],
        splits=np.array([""] * 60),
        images=(noise + 50 * grades[:, None, None]).astype(np.uint8),
        regression=True,
    )
    config = TrainConfig(
        data="grades",
        out=tmp_path / "run",
        ordinal=True,
        loss="huber",
        best_by="mae",
        epochs=2,
        **SHORT_RUN,
    )
    run = train(config, dataset=dataset)
    best = min(run.rows, key=lambda row: (row.val_mae or 0, row.val_loss))
    assert run.best_epoch == best.epoch
    assert headline_name(best) == "MAE"
    assert headline_text(best) == f"{best.val_mae:.4g}"
    [scale] = describe(run.model)["scales"]
    assert scale["grades"] == [1, 4]
    evaluation = evaluate(load(run, device="cpu"), dataset, split="all")
    assert isinstance(evaluation, RegressionEvaluation)
    assert set(evaluation.predicted[:, 0]) <= {1, 2, 3, 4}
    assert 0 <= evaluation.metrics.targets["exact"][0] <= evaluation.metrics.targets["within_one"][0] <= 1
    # Every split has its share of all grades.
    assert [text.split(",")[2] for text in run.splits.read_text().splitlines()].count("val") == 9


def test_a_run_is_complete_where_r2_is_undefined(tmp_path: Path) -> None:
    splits = np.array(["train"] * 16 + ["val"] * 4 + ["test"] * 4)
    dataset = ImageDataset(
        classes=("size",),
        names=[f"{index:02}" for index in range(24)],
        labels=np.where(splits == "train", np.arange(24.0), 3.0)[:, None],
        splits=splits,
        images=np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8),
        regression=True,
    )
    config = TrainConfig(
        data="sizes",
        out=tmp_path / "run",
        epochs=1,
        **SHORT_RUN,
    )
    scores = describe(train(config, dataset=dataset).model)["provenance"]["scores"]
    assert (scores["val_r2"], scores["test_r2"]) == (None, [None])
    assert scores["val_mae"] > 0


def test_what_is_made_for_classes_refuses_numbers(
    number_run: Run, disks: ImageDataset, tmp_path: Path
) -> None:
    classifier = load(number_run, device="cpu")
    for asked in ("coverage", "reject"):
        with pytest.raises(UserError, match=rf"{asked}=0\.5: needs a calibrated model"):
            classifier.predict(Image.new("L", (16, 16)), **{asked: 0.5})  # type: ignore[arg-type]
    single = replace(disks, labels=np.zeros(len(disks), np.int64), regression=False)
    with pytest.raises(UserError, match="has one class an image, which does not fit a regression"):
        evaluate(classifier, single)
    other = replace(disks, labels=disks.labels[:, :1], classes=("radius mm",))
    with pytest.raises(UserError, match="has no numbers for <b>level</b>; its targets are radius mm"):
        evaluate(classifier, other)
    config = TrainConfig(data=number_run.config.data, out=tmp_path / "run", targets=TARGETS, epochs=1)
    with pytest.raises(UserError, match=r"folds=61: .* has 60 groups only"):
        train(replace(config, folds=61, group_column="patient"))
