"""Metrics of the test split in loggers. Where the validation images are tested, both are the same."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger
from sklearn.datasets import load_digits
from tests.helpers.own_networks import TinyNet
from tests.helpers.recording_logger import RecordingLogger
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score, MultilabelF1Score

from skipnets.data.dataset import ImageDataset
from skipnets.evaluation import Evaluation
from skipnets.evaluation.metrics import measure
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import TrainConfig, train
from skipnets.training.final_metrics import final_metrics, log_final_metrics, own_final_metrics

DIGITS, NUMBERS = load_digits(return_X_y=True)
TRAINED, TESTED = 48, 40


def digits(
    labels: Callable[[NDArray[Any]], NDArray[Any]], classes: tuple[str, ...], **kind: Any
) -> ImageDataset:
    """Digits to train on, and others both to validate and to test on."""
    order = np.r_[:TRAINED, TRAINED : TRAINED + TESTED, TRAINED : TRAINED + TESTED]
    return ImageDataset(
        classes=classes,
        names=[str(number) for number in range(len(order))],
        labels=labels(NUMBERS)[order],
        splits=np.repeat(["train", "val", "test"], [TRAINED, TESTED, TESTED]),
        images=(DIGITS.reshape(-1, 8, 8)[order] * 255 / 16).astype(np.uint8),
        **kind,
    )


def marks(numbers: NDArray[Any]) -> NDArray[Any]:
    """Even or not, below 5 or not; some unknown."""
    both = np.stack([numbers % 2 == 0, numbers < 5], axis=1).astype(np.float32)
    both[::7, 1] = np.nan
    return both


def heights(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers[:, None] * np.float32(10)


def two_numbers(numbers: NDArray[Any]) -> NDArray[Any]:
    return np.stack([numbers, 100 - 7 * numbers], axis=1).astype(np.float32)


TASKS: dict[str, tuple[ImageDataset, dict[str, Metric], set[str]]] = {
    "classes": (
        digits(lambda numbers: numbers % 3, ("0", "1", "2")),
        {"f1": MulticlassF1Score(3), "of_each": MulticlassAUROC(3, average=None)},
        {"loss", "accuracy", "balanced_accuracy", "f1", "of_each"},
    ),
    "labels": (
        digits(marks, ("even", "low")),
        {"own": MultilabelF1Score(2, ignore_index=-1)},
        {"loss", "average_precision", "auroc", "own"},
    ),
    "a number": (
        digits(heights, ("height",), regression=True),
        {"own": PearsonCorrCoef()},
        {"mae", "r2", "own"},
    ),
    "numbers": (
        digits(two_numbers, ("up", "down"), regression=True),
        {"own": MeanAbsoluteError()},
        {"mae", "r2", "own"},
    ),
}


@pytest.mark.parametrize(
    "task",
    ["classes", *(pytest.param(task, marks=pytest.mark.slow) for task in ("labels", "a number", "numbers"))],
)
def test_those_of_the_validation_images_are_the_validation_metrics(task: str, tmp_path: Path) -> None:
    dataset, metrics, names = TASKS[task]
    logger, table = RecordingLogger(), CSVLogger(tmp_path / "table")
    config = TrainConfig(
        data=task,
        out=tmp_path / "run",
        epochs=1,
        batch_size=16,
        augmentation="none",
        workers=0,
        accelerator="cpu",
        logger=("csv",),
        block_execution="plain",
    )
    run = train(config, model=TinyNet, dataset=dataset, metrics=metrics, logger=[logger, table])
    logged = logger.metrics
    assert {f"test_{name}" for name in names} <= set(logged)
    for name in names:
        assert logged[f"test_{name}"] == pytest.approx(logged[f"val_{name}"], rel=1e-4), name
    assert logger.finalized == 2
    with Path(table.log_dir, "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert {name: float(last[f"test_{name}"]) for name in metrics} == pytest.approx(
        {name: logged[f"test_{name}"] for name in metrics}
    )
    scores = read_model_file(run.model).metadata["provenance"]["scores"]
    assert {f"test_{name}": logged[f"test_{name}"] for name in metrics}.items() <= scores.items()


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Of a classifier that has not seen any of class c."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(30, 3)).astype(np.float32)
    labels = generator.integers(0, 2, 30)
    return Evaluation(
        classifier="m",
        data="d",
        split="test",
        names=[str(number) for number in range(30)],
        failures={},
        known=None,
        classes=("a", "b", "c"),
        metrics=measure(logits, labels),
        labels=labels,
        logits=logits,
        temperature=1.0,
    )


def test_they_are_those_of_evaluation_json(evaluation: Evaluation) -> None:
    written = evaluation.to_dict()
    found = final_metrics(evaluation)
    assert found.pop("test_loss") == written["nll"]
    names = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "ece")
    assert found == {f"test_{name}": written[name] for name in names}


def test_undefined_ones_are_left_out(evaluation: Evaluation) -> None:
    of_one_class = measure(evaluation.logits[:3], np.zeros(3, np.int64))
    found = final_metrics(dataclasses.replace(evaluation, metrics=of_one_class))
    assert "test_macro_auroc" not in found
    assert "test_accuracy" in found


class Failing(Metric):
    """Fails on more than its first images."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        raise ValueError("no such\nclass")

    def compute(self) -> Tensor:
        return torch.zeros(())


class Unreachable(RecordingLogger):
    """A server that is down by now."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise ConnectionError("no route to host")


def test_what_fails_is_one_line_and_the_rest_goes_on(evaluation: Evaluation) -> None:
    said: list[str] = []
    metrics = {"a": Failing(), "b": MulticlassF1Score(3)}
    found = own_final_metrics(evaluation, metrics, say=said.append)
    assert list(found) == ["test_b"]
    reached = RecordingLogger()
    log_final_metrics([Unreachable(), reached], found, step=3, say=said.append)
    assert reached.metrics == found
    assert said == [
        "metrics: a fails on the test split (no such class), and is left out",
        "logger: Unreachable fails (no route to host); it lacks the metrics of the test split, which are in "
        "evaluation.json",
    ]
