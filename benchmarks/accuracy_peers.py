"""Train a classifier with another library as its users do; `accuracy.py` runs this.

    python accuracy_peers.py fastai-xresnet18 DATA --size 64 --epochs 12 --work FOLDER --json result.json

DATA has the folders train, val and test. Each library keeps its defaults. Only data, size, epochs, seed and
device are given, and what is necessary to train from random weights:

- ultralytics: `YOLO("yolo11n-cls.yaml").train(…)`; tested is its best epoch on val.
- fastai-resnet18: `vision_learner(dls, resnet18, pretrained=False).fit_one_cycle(epochs)`.
- fastai-xresnet18: its small network and the settings of its tutorials for training from scratch:
  `aug_transforms()`, images normalized, label smoothing, `fit_one_cycle`.
- timm-resnet18: the defaults of timm's train.py, which the wheel does not contain: SGD 0.9, rate 0.1 for a
  batch of 256 scaled to its batch of 128, weight decay 2e-5, cosine, label smoothing 0.1, random resized
  crops, flips, color jitter; warm-up of five epochs, but of at most a quarter of them; tested is its best
  epoch on val.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Result(NamedTuple):
    """What a library reached.

    Attributes:
        correct: Number of test images that were classified correctly.
        tested: Number of test images.
        epoch_seconds: Processor time of the first epoch with its validation.
    """

    correct: int
    tested: int
    epoch_seconds: float


def processor_seconds() -> float:
    """Processor time of this process and all that it started, running or not."""
    process = psutil.Process()
    seconds = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            seconds += sum(each.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds


class FirstEpoch:
    """Measures the processor time of the first epoch."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.seconds: float | None = None

    def start(self, *_: object) -> None:
        """An epoch begins."""
        if self.started is None:
            self.started = processor_seconds()

    def end(self, *_: object) -> None:
        """An epoch and its validation are done."""
        if self.seconds is None:
            assert self.started is not None
            self.seconds = processor_seconds() - self.started

    def result(self, correct: int, tested: int) -> Result:
        """The result with the measured time."""
        assert self.seconds is not None
        return Result(correct, tested, self.seconds)


def ultralytics(data: Path, size: int, epochs: int, seed: int, work: Path) -> Result:
    from ultralytics import YOLO

    first = FirstEpoch()
    model = YOLO("yolo11n-cls.yaml")
    model.add_callback("on_train_epoch_start", first.start)
    model.add_callback("on_fit_epoch_end", first.end)
    common = {"data": str(data), "imgsz": size, "device": "cpu", "project": str(work)}
    model.train(epochs=epochs, seed=seed, **common)
    metrics = model.val(split="test", name="test", **common)
    tested = sum(1 for path in (data / "test").rglob("*") if path.is_file())
    return first.result(round(metrics.top1 * tested), tested)


def fastai_resnet18(data: Path, size: int, epochs: int, seed: int, work: Path) -> Result:
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner

    _seed_fastai(seed)
    loaders = ImageDataLoaders.from_folder(
        data, train="train", valid="val", item_tfms=Resize(size), device="cpu"
    )
    return _fit_fastai(vision_learner(loaders, resnet18, pretrained=False, path=work), data, epochs)


def fastai_xresnet18(data: Path, size: int, epochs: int, seed: int, work: Path) -> Result:
    from fastai.vision.all import (
        ImageDataLoaders,
        LabelSmoothingCrossEntropy,
        Learner,
        Normalize,
        Resize,
        aug_transforms,
        imagenet_stats,
        xresnet18,
    )

    _seed_fastai(seed)
    loaders = ImageDataLoaders.from_folder(
        data,
        train="train",
        valid="val",
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats, cuda=False)],
        device="cpu",
    )
    model = xresnet18(n_out=loaders.c)
    learner = Learner(loaders, model, loss_func=LabelSmoothingCrossEntropy(), path=work)
    return _fit_fastai(learner, data, epochs)


def _seed_fastai(seed: int) -> None:
    from fastai.torch_core import set_seed

    set_seed(seed)


def _fit_fastai(learner: Any, data: Path, epochs: int) -> Result:
    from fastai.callback.core import Callback
    from fastai.data.transforms import get_image_files
    from fastai.metrics import accuracy

    first = FirstEpoch()
    learner.metrics = [accuracy]
    clock = Callback(before_epoch=first.start, after_epoch=first.end)
    learner.fit_one_cycle(epochs, cbs=clock)
    tested = learner.dls.test_dl(get_image_files(data / "test"), with_labels=True)
    _, measured = learner.validate(dl=tested, cbs=[])
    return first.result(round(float(measured) * len(tested.dataset)), len(tested.dataset))


def timm_resnet18(data: Path, size: int, epochs: int, seed: int, work: Path) -> Result:  # noqa: ARG001
    import torch
    from timm import create_model, utils
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    batch = 128
    utils.random_seed(seed)
    device = torch.device("cpu")

    def loader(split: str) -> Any:
        training = split == "train"
        dataset = create_dataset("", root=str(data), split=split, is_training=training, batch_size=batch)
        augmentation: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "color_jitter": 0.4}
        return create_loader(
            dataset,
            input_size=(3, size, size),
            batch_size=batch,
            is_training=training,
            num_workers=4,
            device=device,
            interpolation="random" if training else "bilinear",
            **(augmentation if training else {}),
        )

    @torch.no_grad()
    def measure(images: Any) -> tuple[int, int]:
        model.eval()
        hits = [(model(batch).argmax(1) == labels).float() for batch, labels in images]
        every = torch.cat(hits)
        return int(every.sum()), len(every)

    train, val, test = loader("train"), loader("val"), loader("test")
    model = create_model("resnet18", num_classes=len(list((data / "train").iterdir())))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * batch / 256, momentum=0.9, weight_decay=2e-5)
    warmup = min(5, epochs // 4)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=warmup)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    first = FirstEpoch()
    best, weights = -1, {}
    for epoch in range(epochs):
        first.start()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
        correct, _ = measure(val)
        if correct > best:
            best, weights = correct, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        schedule.step(epoch + 1, correct)
        first.end()
    model.load_state_dict(weights)
    return first.result(*measure(test))


PEERS: dict[str, tuple[str, Callable[[Path, int, int, int, Path], Result]]] = {
    "ultralytics": ("ultralytics", ultralytics),
    "fastai-resnet18": ("fastai", fastai_resnet18),
    "fastai-xresnet18": ("fastai", fastai_xresnet18),
    "timm-resnet18": ("timm", timm_resnet18),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what the library writes")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    package, train = PEERS[options.peer]
    result = train(options.data.resolve(), options.size, options.epochs, options.seed, options.work.resolve())
    versions = {name: version(name) for name in (package, "torch", "torchvision")}
    options.json.write_text(json.dumps({**result._asdict(), "versions": versions}))


if __name__ == "__main__":
    main()
