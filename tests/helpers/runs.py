"""Run folders as training leaves them, made without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data import Preprocessing, open_dataset
from skipnets.data.folds import deal_out_folds
from skipnets.data.sources import find_with_own_splits
from skipnets.data.splits import Shares
from skipnets.evaluation import evaluate
from skipnets.models import create_model
from skipnets.training.batches import ShownImage, draw_batch
from skipnets.training.config import TrainConfig
from skipnets.training.folds import join_folds
from skipnets.training.recipes import with_recipe
from skipnets.training.run import Row, Run, write_config, write_environment, write_metrics, write_skipped

# What a class and a file may be called by someone who means harm.
HOSTILE_CLASSES = (
    "<script>document.title='owned'<",
    "\"><img src=x onerror=document.title='owned'>",
    "{{ 7 * 7 }} $\\frac{1}{2}$ &amp; \u202egnp.exe",
)
HOSTILE_FILE = "a'\"><svg onload=document.title='owned'> #\n.png"


def write_images(root: Path, classes: tuple[str, ...], each: int, names: tuple[str, ...] = ()) -> Path:
    """Noisy images of 12×16, a shade a class."""
    rng = np.random.default_rng(0)
    for number, label in enumerate(classes):
        folder = root / label
        folder.mkdir(parents=True)
        for index in range(each):
            pixels = rng.integers(0, 120, (12, 16, 3)) + 120 * (number % 2)
            name = names[index] if index < len(names) else f"{index:03}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name, "PNG")
    return root


def make_run(folder: Path, data: Path, *, seed: int = 0, name: str = "resnet20") -> Run:
    """A run folder with a network of random weights."""
    run = Run(folder)
    dataset = open_dataset(data)
    folder.mkdir(parents=True)
    config = with_recipe(
        TrainConfig(data=str(data), out=folder, model=name, recipe="scratch", epochs=3, lr=0.1)
    )
    write_config(run, config)
    write_environment(run, seed=0)
    dataset.write_splits(run.splits)
    write_metrics(run.metrics, [row(epoch) for epoch in (1, 2, 3)])
    shades = [Image.new("RGB", (16, 16), (80 * number,) * 3) for number in range(3)]
    mixed = ((dataset.classes[0], 0.75), (dataset.classes[1], 0.25))
    labels = (((dataset.classes[0], 1.0),), ((dataset.classes[1], 1.0),), mixed)
    draw_batch(
        [ShownImage(image=image, labels=each) for image, each in zip(shades, labels, strict=True)],
        run.batches,
    )
    torch.manual_seed(seed)
    classifier = Classifier.from_model(
        create_model(name, num_classes=len(dataset.classes)),
        classes=dataset.classes,
        preprocessing=Preprocessing(size=16),
        provenance={"data": str(data), "scores": {"epoch": 2}},
    )
    classifier.save(run.model)
    evaluation = evaluate(classifier, dataset, split="test", workers=1)
    evaluation.save(folder)
    if evaluation.failures:
        write_skipped(run, {"elsewhere/broken.png": "cut short"})
    return run


def make_folds_run(folder: Path, data: Path, *, folds: int = 2) -> Run:
    """A run folder with folds, of networks of random weights."""
    run = Run(folder)
    config = with_recipe(
        TrainConfig(data=str(data), out=folder, model="resnet20", epochs=3, lr=0.1, folds=folds, workers=0)
    )
    dealt = deal_out_folds(find_with_own_splits(data), folds, 0, data)
    for number in range(1, folds + 1):
        fold = run.fold(number)
        dataset = dealt.fold(number, Shares({"train": 0.7, "val": 0.15}), 0, data)
        write_config(fold, dataclasses.replace(config, folds=None, out=fold.folder))
        dataset.write_splits(fold.splits)
        write_metrics(fold.metrics, [row(epoch) for epoch in (1, 2, 3)])
        torch.manual_seed(number)
        classifier = Classifier.from_model(
            create_model("resnet20", num_classes=len(dataset.classes)),
            classes=dataset.classes,
            preprocessing=Preprocessing(size=16),
            provenance={"data": str(data), "scores": {"epoch": number}},
        )
        classifier.save(fold.model)
        evaluate(classifier, dataset, split="test", workers=1).save(fold.folder)
    write_config(run, config)
    write_environment(run, seed=0)
    dealt.write(run.splits)
    join_folds(run, dealt, lambda _: None)
    return run


def row(epoch: int) -> Row:
    """What training writes to metrics.csv after an epoch."""
    return Row(
        epoch=epoch,
        lr=0.1,
        train_loss=2.0 / epoch,
        val_loss=3.0 / epoch,
        val_accuracy=0.2 * epoch,
        val_balanced_accuracy=0.2 * epoch,
        seconds=50.0,
        validation_seconds=1.0,
        train_accuracy=0.15 * epoch,
        gradient_norm=1.5 / epoch,
        images_per_second=400.0,
        processor_seconds=51.0,
        memory=900.0,
    )
