"""A small classifier that has seen images, and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.preprocessing import Preprocessing
from skipnets.models.factory import create_model
from skipnets.models.registry import config_to_dict, model_config

CLASSES = ("ant", "bee", "cat")
FORMATS = ("onnx", "openvino", "pt2")


def make_classifier(name: str = "densenet_bc40_k12", *, channels: int = 3, **fields: Any) -> Classifier:
    """A classifier whose norms have seen something."""
    shape: dict[str, Any] = {"block_config": (2, 1)}
    if name.startswith("densenet"):
        shape["growth_rate"] = 4
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, in_chans=channels, **(shape | fields))
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, channels, 16, 16))
    return Classifier.from_model(
        model,
        classes=CLASSES,
        preprocessing=Preprocessing(size=(16, 20), channels=channels),
        provenance={"data": "pets", "scores": {"accuracy": 0.9}},
    )


class _Pixels:
    """A runtime whose logits are an image's first pixels, and whose features are all of them."""

    name = "pixels"
    device = "cpu"
    input_type = "float32"

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch[:, 0, 0, :3]

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch.reshape(len(batch), -1)


def make_reader(**fields: Any) -> Classifier:
    """A classifier of (1, 4, 4) batches that are their own logits, with these arguments of `Classifier`."""
    arguments: dict[str, Any] = {
        "architecture": config_to_dict(model_config("resnet20", num_classes=3, in_chans=1)),
        "classes": CLASSES,
        "preprocessing": Preprocessing(size=4, channels=1, mean=(0,), std=(1,)),
        "provenance": {},
        "runtime": _Pixels(),
    }
    return Classifier(**(arguments | fields))


def batch_of(logits: Any) -> NDArray[np.float32]:
    """(N, 3) logits as a batch for `make_reader`."""
    batch = np.zeros((len(logits), 1, 4, 4), np.float32)
    batch[:, 0, 0, :3] = np.reshape(logits, (-1, 3))
    return batch


def make_images(classifier: Classifier, count: int = 40, *, wrong: int = 0) -> ImageDataset:
    """Images labeled as the classifier sees them, all but the last few, half train and half val."""
    images = np.random.default_rng(1).integers(0, 256, (count, 16, 20, 3), dtype=np.uint8)
    labels = classifier.logits(classifier.preprocess(list(images))).argmax(1).astype(np.int64)
    if wrong:
        labels[-wrong:] = (labels[-wrong:] + 1) % len(classifier.classes)
    return ImageDataset(
        classes=classifier.classes,
        names=[f"{index:03}" for index in range(count)],
        labels=labels,
        splits=np.array(["train", "val"] * (count // 2)),
        images=images,
    )


def some_image(shape: tuple[int, ...] = (31, 23, 3), seed: int = 0) -> NDArray[np.uint8]:
    """An image of odd sides."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_class_folders(root: Path, classes: tuple[str, ...]) -> Path:
    """Ten tiny images a class."""
    for label in classes:
        (root / label).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(some_image((16, 20, 3), index)).save(root / label / f"{index}.png")
    return root
