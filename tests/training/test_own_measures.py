"""Losses and metrics of a program for several labels an image and for numbers, some of them unknown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from tests.helpers.disks import TARGETS, write_disks
from tests.helpers.labels import LABELS, write_tiles
from tests.helpers.own_networks import TinyNet
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric, PearsonCorrCoef
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassROC,
    MultilabelF1Score,
)

import skipnets
from skipnets.data.dataset import ImageDataset
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import Run, TrainConfig, resume, train
from skipnets.training.own_measures import (
    check_loss,
    check_metrics,
    integer_labels,
    known_numbers,
    of_known,
)

NAN = float("nan")
TINY = "tests.helpers.own_networks:TinyNet"


def labeled(rows: list[list[float]], **fields: Any) -> ImageDataset:
    """As many images with these labels or numbers, the same to train and to validate."""
    labels = np.array([*rows, *rows], np.float32)
    return ImageDataset(
        classes=tuple("abc"[: labels.shape[1]]),
        names=[str(number) for number in range(len(labels))],
        labels=labels,
        splits=np.array(["train"] * len(rows) + ["val"] * len(rows)),
        images=np.zeros((len(labels), 8, 8), np.uint8),
        **fields,
    )


LABELED: dict[str, Any] = {}
NUMBERED: dict[str, Any] = {"regression": True}
WHOLE, GAPS = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1.0, NAN], [0.0, 1.0], [1.0, 0.0]]


WEIGHTS = torch.tensor([1.0, 3.0])


@pytest.mark.parametrize(
    ("loss", "of_pairs"),
    [
        (
            nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
            lambda outputs, targets, columns: F.binary_cross_entropy_with_logits(
                outputs, targets, pos_weight=WEIGHTS[columns]
            ),
        ),
        (nn.L1Loss(), lambda outputs, targets, _: F.l1_loss(outputs, targets)),
        (nn.HuberLoss(delta=0.5), lambda outputs, targets, _: F.huber_loss(outputs, targets, delta=0.5)),
    ],
)
def test_losses_of_pytorch_leave_out_what_is_unknown(
    loss: nn.Module, of_pairs: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    outputs, targets = torch.randn(6, 2, requires_grad=True), torch.randint(0, 2, (6, 2)).float()
    masked = of_known(loss, 2)
    torch.testing.assert_close(masked(outputs, targets), loss(outputs, targets))
    targets[::2, 1] = NAN
    known = torch.isfinite(targets)
    columns = torch.arange(2).expand(6, 2)[known]
    found = masked(outputs, targets)
    torch.testing.assert_close(found, of_pairs(outputs[known], targets[known], columns))
    (gradient,) = torch.autograd.grad(found, outputs)
    assert (gradient[::2, 1] == 0).all()
    assert loss.reduction == "mean"


def test_other_losses_are_called_as_they_are() -> None:
    for loss in (F.mse_loss, nn.MSELoss(reduction="sum"), nn.MultiLabelSoftMarginLoss()):
        assert of_known(loss, 2) is loss


def ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that a program masks itself."""
    known = torch.isfinite(targets)
    return F.mse_loss(outputs[known], targets[known])


class Locked(nn.Module):
    """A loss that holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, K) twice → the mean."""
        return F.mse_loss(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "dataset", "message"),
    [
        (Locked(), labeled(WHOLE, **LABELED), "^loss: must be something that copy.deepcopy can copy .*lock"),
        (nn.BCEWithLogitsLoss(), labeled(GAPS, **LABELED), None),
        (nn.MultiLabelSoftMarginLoss(), labeled(WHOLE, **LABELED), None),
        (ignoring, labeled(GAPS, **NUMBERED), None),
        # The first 256 images, on which it is tried, may all have the same number, as where a file is sorted.
        (F.mse_loss, labeled([[5.0]] * 256 + [[6.0]] * 4, **NUMBERED), None),
        (
            F.mse_loss,
            labeled(GAPS, **NUMBERED),
            "loss: must leave out numbers that are unknown, which are NaN",
        ),
        (
            lambda outputs, targets: (outputs - targets).square().nanmean(),
            labeled(GAPS, **LABELED),
            "loss: must leave out labels .*; the loss or its gradient is not finite",
        ),
        (F.mse_loss, labeled([[0.0]] * 300 + [[1.0]], **NUMBERED), None),
        (nn.CrossEntropyLoss(reduction="none"), labeled(WHOLE, **LABELED), r"not shape \(3,\)"),
        (
            lambda *_: 1.0,
            labeled(WHOLE, **LABELED),
            "loss: must return one number that has a gradient, .*float",
        ),
        (
            nn.MultiMarginLoss(),
            labeled(WHOLE, **LABELED),
            r"^loss: fails on outputs and labels of shape \(3, 2\) \(",
        ),
    ],
)
def test_a_loss_of_several_labels_or_numbers_is_tried_before_the_training(
    loss: Any, dataset: ImageDataset, message: str | None
) -> None:
    if message is None:
        check_loss(loss, dataset)
        return
    with pytest.raises(UserError, match=message):
        check_loss(loss, dataset)


CLASSES = ImageDataset(
    classes=("a", "b", "c"),
    names=list("12345678"),
    labels=np.array([0, 2, 1, 1] * 2),
    splits=np.array(["train"] * 4 + ["val"] * 4),
    images=np.zeros((8, 8, 8), np.uint8),
)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), None),
        (nn.MultiMarginLoss(), None),
        (nn.CrossEntropyLoss, r"loss: fails on outputs of shape \(4, 3\) and labels of shape \(4,\)"),
        (lambda *given: (F.cross_entropy(*given), {}), "must return one number .*, not tuple"),
        (nn.CrossEntropyLoss(reduction="none"), r"must return one number .*, not shape \(4,\)"),
        (lambda logits, labels: (logits.argmax(1) == labels).float().mean(), r"not shape \(\)"),
        (nn.BCEWithLogitsLoss(), r"fails on outputs of shape \(4, 3\) and labels of shape \(4,\) \("),
        (nn.CrossEntropyLoss(weight=torch.ones(4)), r"loss: fails on .*weight"),
        (lambda *_: nn.Parameter(torch.ones(())), "loss: must depend on the network's outputs"),
    ],
)
def test_a_loss_of_classes_is_tried_before_the_training(loss: Any, message: str | None) -> None:
    if message is None:
        check_loss(loss, CLASSES)
        return
    with pytest.raises(UserError, match=message):
        check_loss(loss, CLASSES)


def test_a_loss_is_tried_on_mixed_labels_where_images_are_mixed() -> None:
    check_loss(nn.CrossEntropyLoss(), CLASSES, mixed=True)
    with pytest.raises(UserError, match=r"mixed labels of shape .* switched off by mixup=0 and cutmix=0"):
        check_loss(nn.MultiMarginLoss(), CLASSES, mixed=True)


class Computing(Metric):
    """Computes what it is told to."""

    count: Tensor

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.count += len(outputs)

    def compute(self) -> Any:
        return self.value() if callable(self.value) else self.value


def failing() -> None:
    raise ValueError("too few")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (MulticlassF1Score(3, average=None), None),
        (Computing(1.5), None),
        (Computing(np.float32(1.5)), None),
        (Computing(torch.ones(1)), None),
        (MulticlassConfusionMatrix(3), r"must compute one number, or one for each class, .*shape \(3, 3\)"),
        (MulticlassROC(3), "must compute one number, .*, not tuple"),
        (Computing({"a": 1.0}), "must compute one number, .*, not dict"),
        (Computing(None), "must compute one number, .*, not NoneType"),
        (Computing("high"), "must compute one number, .*, not str"),
        (Computing(failing), r"metrics: m fails on .* \(too few\)"),
    ],
)
def test_what_a_metric_computes_is_seen_before_the_training(metric: Metric, message: str | None) -> None:
    if message is None:
        check_metrics({"m": metric}, CLASSES)
        return
    with pytest.raises(UserError, match=message):
        check_metrics({"m": metric}, CLASSES)


@pytest.mark.parametrize(
    ("metric", "dataset", "message"),
    [
        (MultilabelF1Score(2), labeled(WHOLE, **LABELED), None),
        (MultilabelF1Score(2, ignore_index=-1), labeled(GAPS, **LABELED), None),
        (MeanAbsoluteError(), labeled(WHOLE, **NUMBERED), None),
        (PearsonCorrCoef(), labeled([[1.0], [NAN], [3.0]], **NUMBERED), None),
        (MultilabelF1Score(2), labeled(GAPS, **LABELED), "metrics: m must be made with ignore_index=-1"),
        (
            MeanAbsoluteError(),
            labeled(GAPS, **NUMBERED),
            "metrics: m: must be given with one number an image",
        ),
        (MultilabelF1Score(3), labeled(WHOLE, **LABELED), r"metrics: m fails on .* \(3, 2\) and \(3, 2\) \("),
        (PearsonCorrCoef(), labeled(WHOLE, **NUMBERED), r"metrics: m fails on arrays of shapes \(3, 2\) and"),
    ],
)
def test_a_metric_is_tried_before_the_training(
    metric: Metric, dataset: ImageDataset, message: str | None
) -> None:
    if message is None:
        check_metrics({"m": metric}, dataset)
        assert not metric.update_called
        return
    with pytest.raises(UserError, match=message):
        check_metrics({"m": metric}, dataset)


def test_metrics_get_what_torchmetrics_takes() -> None:
    assert integer_labels(torch.tensor(GAPS)).tolist() == [[1, -1], [0, 1], [1, 0]]
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[NAN], [3.0]])
    assert [each.tolist() for each in known_numbers(outputs, targets)] == [[2.0], [3.0]]
    both = torch.tensor(GAPS)
    assert known_numbers(both, both)[1] is both


def config(data: Path, out: Path, **fields: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 16,
        "recipe": "scratch",
        "augmentation": "none",
        "duplicates": "ignore",
        "block_execution": "plain",
        "channels_last": False,
        "operators": {},
        "workers": 0,
        "accelerator": "cpu",
    }
    return TrainConfig(data=str(data), out=out, **(options | fields))


def weights(run: Run) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_model_file(run.model).tensors().items()}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("own-measures") / "tiles", 60)


@pytest.fixture(scope="module")
def label_run(tiles: Path) -> Run:
    return train(
        config(tiles, tiles.parent / "own"),
        model=TinyNet,
        loss=nn.BCEWithLogitsLoss(),
        metrics={"f1": MultilabelF1Score(3, ignore_index=-1)},
    )


def test_a_metric_of_several_labels_is_that_of_the_known_ones(label_run: Run) -> None:
    classifier = skipnets.load(label_run, trust=TINY)
    dataset = open_dataset(label_run.config.data, splits=label_run.splits).split("val")
    assert classifier.classes == LABELS
    evaluation = evaluate(classifier, dataset, split="val")
    expected = []
    for truth, found in zip(dataset.labels.T, evaluation.probabilities.T, strict=True):
        known = np.isfinite(truth)
        expected.append(f1_score(truth[known], found[known] > 0.5, zero_division=0))
    assert label_run.rows[0].further["val_f1"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert (label_run.config.supplied, label_run.config.loss) == (("loss", "metrics"), None)


@pytest.mark.slow
def test_the_built_in_loss_given_as_one_s_own_trains_the_same(label_run: Run, tiles: Path) -> None:
    built_in = train(config(tiles, tiles.parent / "built-in"), model=TinyNet)
    assert built_in.config.loss == "bce"
    assert weights(built_in) == weights(label_run)
    assert built_in.rows[0].val_loss == label_run.rows[0].val_loss
    more = {"trust": TINY, "metrics": {"f1": MultilabelF1Score(3, ignore_index=-1)}}
    with pytest.raises(UserError, match="loss: the run was given one by its program"):
        resume(label_run.folder, epochs=2, **more)  # type: ignore[arg-type]
    assert len(resume(label_run.folder, epochs=2, loss=nn.BCEWithLogitsLoss(), **more).rows) == 2  # type: ignore[arg-type]


def test_numbers_have_a_loss_and_metrics_in_their_units(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "disks", 50)
    run = train(
        config(data, tmp_path / "run", targets=TARGETS[1:]),
        model=TinyNet,
        loss=nn.L1Loss(),
        metrics={"error": MeanAbsoluteError(), "correlation": PearsonCorrCoef()},
    )
    row = run.rows[0]
    # Measured without torchmetrics, from the scaled numbers.
    assert row.further["val_error"] == pytest.approx(row.val_mae, rel=1e-4)
    assert -1 <= row.further["val_correlation"] <= 1
    assert run.config.loss is None


@pytest.mark.slow
def test_the_built_in_loss_of_numbers_trains_the_same(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "disks", 50, unknown=7)
    runs = [
        train(config(data, tmp_path / name, targets=TARGETS), model=TinyNet, loss=loss)
        for name, loss in {"built-in": None, "own": nn.MSELoss()}.items()
    ]
    assert weights(runs[0]) == weights(runs[1])
    assert runs[0].rows[0].val_loss == runs[1].rows[0].val_loss
