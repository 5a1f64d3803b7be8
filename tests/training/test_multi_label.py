"""Training with several labels an image: losses against PyTorch, a whole run, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers.labels import LABELS, write_tiles

from skipnets.classifier import describe, load
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, evaluate
from skipnets.evaluation.multi_label import ranking_metrics
from skipnets.evaluation.thresholds import ThresholdRule, choose_thresholds
from skipnets.insight import explain
from skipnets.training import Run, TrainConfig
from skipnets.training.multi_label import (
    AsymmetricLoss,
    LabelLoss,
    LabelScores,
    positive_weights,
    with_label_defaults,
)
from skipnets.training.trainer import resume

NAN = float("nan")


def some() -> tuple[torch.Tensor, torch.Tensor]:
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    targets = torch.randint(0, 2, (6, 4)).double()
    targets[0, 1] = targets[3] = NAN
    return logits.requires_grad_(), targets


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_pytorchs_over_the_known_labels(weighted: bool) -> None:
    logits, targets = some()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).double() if weighted else None
    known = torch.isfinite(targets)
    every = F.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), pos_weight=weights, reduction="none"
    )
    loss = LabelLoss(weights)(logits, targets)
    torch.testing.assert_close(loss, every[known].mean())
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~known] == 0).all()


def test_smoothing_moves_targets_towards_one_half() -> None:
    logits, _ = some()
    targets = torch.ones_like(logits)
    expected = F.binary_cross_entropy_with_logits(logits, 0.95 * targets)
    torch.testing.assert_close(LabelLoss(smoothing=0.1)(logits, targets), expected)


def test_the_asymmetric_loss_is_that_of_its_paper() -> None:
    logits, targets = some()
    total, count = 0.0, 0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        if target != target:
            continue
        p = 1 / (1 + np.exp(-logit))
        shifted = max(p - 0.05, 0)
        total -= (1 - p) * np.log(p) if target == 1 else shifted**4 * np.log(1 - shifted)
        count += 1
    assert AsymmetricLoss()(logits, targets).item() == pytest.approx(total / count, rel=1e-5)
    plain = AsymmetricLoss(gamma_positive=0, gamma_negative=0, margin=0)(logits, targets)
    torch.testing.assert_close(plain, LabelLoss()(logits, targets).float())


def test_positive_weights_are_absent_over_present() -> None:
    labels = np.array([[1, 0], [0, 0], [0, NAN], [0, 0]], np.float32)
    assert positive_weights(labels).tolist() == [3, 1]


def test_scores_of_an_epoch_are_those_of_all_batches_together() -> None:
    logits, targets = some()
    scores = LabelScores()
    for part in (slice(0, 4), slice(4, 6)):
        scores.update(logits[part].detach(), targets[part])
    values = scores.compute()
    expected = ranking_metrics(logits.detach().numpy(), targets.numpy())
    assert values["val_average_precision"] == pytest.approx(np.nanmean(expected["average_precision"]))
    assert values["val_auroc"] == pytest.approx(np.nanmean(expected["auroc"]))
    known = torch.isfinite(targets)
    assert values["val_accuracy"] == pytest.approx(
        float(((logits > 0) == (targets == 1))[known].double().mean())
    )


def test_a_run_learns_and_its_file_holds_task_and_thresholds_chosen_on_validation_images(
    label_run: Run,
) -> None:
    rows = label_run.rows
    best = max(rows, key=lambda row: row.val_average_precision or 0)
    assert label_run.best_epoch == best.epoch
    assert (best.val_average_precision or 0) > (rows[0].val_average_precision or 0)
    assert label_run.config.task == "multi-label"
    metadata = describe(label_run.model)
    assert metadata["task"] == "multi-label"
    assert metadata["classes"] == list(LABELS)
    assert metadata["provenance"]["thresholds"]["rule"] == "f1"
    classifier = load(label_run, device="cpu")
    val = evaluate(classifier, split="val")
    assert isinstance(val, MultiLabelEvaluation)
    expected, _ = choose_thresholds(val.probabilities, val.labels, ThresholdRule("f1"), LABELS)
    assert metadata["thresholds"] == pytest.approx(expected)
    assert label_run.scores["macro"]["auroc"]["value"] > 0.7
    assert label_run.scores["groups"] is not None


def test_the_validation_loss_counts_every_known_pair_once(label_run: Run) -> None:
    evaluation = evaluate(load(label_run, runtime="torch", device="cpu"), split="val")
    assert isinstance(evaluation, MultiLabelEvaluation)
    logits, labels = torch.from_numpy(evaluation.logits), torch.from_numpy(evaluation.labels)
    known = torch.isfinite(labels)
    assert not known.all()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    best = next(row for row in label_run.rows if row.epoch == label_run.best_epoch)
    assert best.val_loss == pytest.approx(losses[known].mean().item(), rel=1e-4)


def test_predictions_hold_all_labels_that_reach_their_thresholds(label_run: Run) -> None:
    classifier = load(label_run, runtime="torch", device="cpu")
    image = Path(label_run.config.data).with_name("000.png")
    [prediction] = classifier.predict(image)
    logits = classifier.logits(classifier.preprocess(image))[0]
    probabilities = dict(zip(LABELS, (1 / (1 + np.exp(-logits.astype(float)))).tolist(), strict=True))
    assert dict(prediction.ranking) == pytest.approx(probabilities)
    assert [share for _, share in prediction.ranking] == pytest.approx(
        sorted(probabilities.values(), reverse=True)
    )
    assert classifier.thresholds is not None
    reached = {
        name
        for name, threshold in zip(LABELS, classifier.thresholds, strict=True)
        if probabilities[name] >= threshold
    }
    assert set(prediction.labels) == reached
    assert prediction.label is None
    [maps] = explain(classifier, image)
    assert [each.label for each in maps] == list(prediction.labels or (prediction.ranking[0][0],))


def test_a_complete_run_is_extended(label_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(label_run.folder, folder)
    run = resume(folder, epochs=7)
    assert len(run.rows) == 7
    assert describe(run.model)["task"] == "multi-label"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    path = write_tiles(tmp_path_factory.mktemp("tiles") / "data", 40)
    return find_dataset(path, options=DataOptions(group_column="patient"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imbalance": "balanced-sampling"}, "weighted-loss weighs"),
        ({"best_by": "accuracy"}, "must be one of average-precision, auroc, loss"),
        ({"threshold": "2"}, "threshold=2: must be"),
        ({"loss": "asymmetric", "label_smoothing": 0.1}, "label_smoothing=0.1: must not be given with"),
    ],
)
def test_options_for_one_class_an_image_are_refused(
    tiles: ImageDataset, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_label_defaults(TrainConfig(data="tiles", out=tmp_path, **changes), tiles)


def test_options_for_several_labels_are_refused_with_one_class_an_image(
    tiles: ImageDataset, tmp_path: Path
) -> None:
    single = replace(tiles, labels=np.zeros(len(tiles), np.int64))
    for changes in ({"loss": "bce"}, {"threshold": "f1"}, {"best_by": "auroc"}):
        with pytest.raises(UserError, match=f"^{next(iter(changes))}="):
            with_label_defaults(TrainConfig(data="tiles", out=tmp_path, **changes), single)  # type: ignore[arg-type]
    blank = replace(tiles, labels=np.zeros_like(tiles.labels))
    with pytest.raises(UserError, match="no label is present in some validation images"):
        with_label_defaults(TrainConfig(data="tiles", out=tmp_path), blank)


@pytest.mark.parametrize(("split", "message"), [("val", "best_by=loss: no label is"), ("train", "tiles: no")])
def test_labels_that_are_known_of_no_image_of_a_split_are_refused(
    tiles: ImageDataset, tmp_path: Path, split: str, message: str
) -> None:
    labels = tiles.labels.copy()
    labels[tiles.splits == split] = NAN
    config = TrainConfig(data="tiles", out=tmp_path, best_by="loss")
    with pytest.raises(UserError, match=f"^{message}"):
        with_label_defaults(config, replace(tiles, labels=labels))


def test_several_labels_and_one_class_do_not_pass_for_one_another(
    label_run: Run, tiles: ImageDataset
) -> None:
    classifier = load(label_run, device="cpu")
    single = replace(tiles, labels=np.zeros(len(tiles), np.int64))
    with pytest.raises(UserError, match="has one class an image, which does not fit a multi-label"):
        evaluate(classifier, single)
