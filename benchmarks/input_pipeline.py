"""Training input in images per second: this project's loader against torchvision's.

    python benchmarks/input_pipeline.py --cifar /path/to/cifar10/train --json input.json

What a user would otherwise take is torchvision.datasets.ImageFolder with RandomResizedCrop(224), flip,
ToTensor and Normalize (RandomCrop(32, padding=4) for images of CIFAR's size) in a DataLoader. Both
deliver the same: normalized float32 batches of equal size, with as many worker processes, from the same
files. Before anything is timed, one epoch of each is checked: every image once, equal shapes, and pixels
equal in distribution. Then epochs alternate; medians are compared. What is paid once (starting workers,
decoding what is held in memory) is reported apart. Photographs are synthetic: 1/f noise, as in natural
scenes, with edges, as JPEGs of quality 90 with halved chroma. Files come from the page cache. Targets: 2.5
times on photographs of 12 megapixels, 1.3 times on 400x500, 2 times at CIFAR's size, and at least the rate
at which densenet_bc40_k12 trains.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageDraw, features
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from skipnets.data import Preprocessing, open_dataset
from skipnets.data.loading import training_loader
from skipnets.models.factory import create_model

Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def photograph(width: int, height: int, rng: np.random.Generator, *, blur: float) -> Image.Image:
    """An image with a photograph's spectrum (amplitude ~ 1/frequency) and some sharp edges.

    Args:
        width: in pixels.
        height: in pixels.
        rng: draws it.
        blur: standard deviation, in pixels, of what lens and color filter blur; 0 for a reduced image.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(
        width, height
    )
    amplitude = np.exp(-2 * (np.pi * blur * frequency) ** 2) / frequency
    channels = []
    shared = np.exp(2j * np.pi * rng.random(frequency.shape)) * amplitude
    for _ in range(3):  # channels of a photograph resemble one another
        own = np.exp(2j * np.pi * rng.random(frequency.shape)) * amplitude
        channels.append(np.fft.irfft2(shared + 0.3 * own, s=(height, width)))
    field = np.stack(channels, axis=2)
    image = Image.fromarray((125 + 55 * field / field.std()).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        reach = int(rng.integers(min(width, height) // 40, min(width, height) // 6))
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((int(x), int(y), int(x) + reach, int(y) + reach), fill=color)
    return image


def make_folder(root: Path, width: int, height: int, *, distinct: int, count: int, blur: float = 0.0) -> Path:
    """A folder of two classes with `count` JPEGs, of which so many are distinct."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / f"class{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < distinct:
            photograph(width, height, rng, blur=blur).save(path, quality=90, subsampling="4:2:0")
        else:
            same = root / f"class{number % distinct % 2}" / f"{number % distinct:05d}.jpg"
            path.write_bytes(same.read_bytes())
    return root


def torchvision_epochs(root: Path, preprocessing: Preprocessing, *, batch_size: int, workers: int) -> Epoch:
    size = preprocessing.size[0]
    crop = transforms.RandomCrop(size, padding=4) if size == 32 else transforms.RandomResizedCrop(size)
    images = datasets.ImageFolder(
        str(root),
        transforms.Compose(
            [
                crop,
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        ),
    )
    loader: DataLoader[Any] = DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def skipnets_epochs(root: Path, preprocessing: Preprocessing, *, batch_size: int, workers: int) -> Epoch:
    dataset = open_dataset(root, fractions=None)
    augmentation = "crop-flip" if preprocessing.size[0] == 32 else "resized-crop"
    loader = training_loader(dataset, preprocessing, augmentation, batch_size=batch_size, workers=workers)
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    epoch = -1

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal epoch
        epoch += 1
        loader.sampler.set_epoch(epoch)
        for dataset, labels, _ in loader:
            # As training does on its device: here on the CPU, so its time counts.
            dataset = dataset.to(torch.float32, memory_format=torch.contiguous_format)
            yield dataset.div_(255).sub_(mean).div_(std), labels

    return batches


def figures(epoch: Epoch) -> dict[str, Any]:
    """What one epoch holds, to compare two loaders by."""
    count, labels, shapes = 0, torch.zeros(1000, dtype=torch.long), set()
    total, squares, detail = torch.zeros(3), torch.zeros(3), 0.0
    for images, targets in epoch():
        count += len(images)
        labels += torch.bincount(targets, minlength=1000)
        shapes.add((*images.shape[1:], str(images.dtype)))
        total += images.mean((2, 3)).sum(0)
        squares += images.square().mean((2, 3)).sum(0)
        detail += float(images.diff(dim=3).abs().mean((1, 2, 3)).sum())
    mean = total / count
    return {
        "images": count,
        "labels": labels.tolist(),
        "shapes": shapes,
        "mean": mean.numpy(),
        "std": (squares / count - mean.square()).sqrt().numpy(),
        "detail": detail / count,
    }


def check_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Same images, shapes and classes; same pixels in distribution, as far as one epoch tells."""
    for name in ("images", "labels", "shapes"):
        assert ours[name] == theirs[name], (name, ours[name], theirs[name])
    spread = 4 * 2**0.5 / ours["images"] ** 0.5  # four standard errors of a difference, at unit variance
    np.testing.assert_allclose(ours["mean"], theirs["mean"], atol=max(spread, 0.02))
    np.testing.assert_allclose(ours["std"], theirs["std"], rtol=max(spread, 0.02))
    np.testing.assert_allclose(ours["detail"], theirs["detail"], rtol=max(spread, 0.02))


def seconds(epoch: Epoch) -> float:
    start = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - start


def compare(root: Path, size: int, *, batch_size: int, workers: int, repeats: int) -> dict[str, Any]:
    """Check, then time alternating epochs."""
    preprocessing = Preprocessing(size)
    epochs, first, checked = {}, {}, {}
    for name, make in (("torchvision", torchvision_epochs), ("skipnets", skipnets_epochs)):
        start = time.perf_counter()
        epochs[name] = make(root, preprocessing, batch_size=batch_size, workers=workers)
        next(epochs[name]())
        first[name] = time.perf_counter() - start
        checked[name] = figures(epochs[name])
    check_equal(checked["skipnets"], checked["torchvision"])
    count = checked["skipnets"]["images"]
    rates: dict[str, list[float]] = {"torchvision": [], "skipnets": []}
    for _ in range(repeats):
        for name, measured in rates.items():
            measured.append(count / seconds(epochs[name]))
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
    return {
        "images": count,
        "mean_file_bytes": statistics.mean(sizes),
        "batch_size": batch_size,
        "images_per_second": medians,
        "range": {name: [min(measured), max(measured)] for name, measured in rates.items()},
        "ratio": medians["skipnets"] / medians["torchvision"],
        "seconds_to_first_batch": first,
        "detail_ratio": checked["skipnets"]["detail"] / checked["torchvision"]["detail"],
    }


def training_rate(repeats: int) -> float:
    """Images per second that densenet_bc40_k12 trains on here, given its input for nothing."""
    model = create_model("densenet_bc40_k12", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    measured = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        measured.append(len(images) / (time.perf_counter() - start))
    return statistics.median(measured[1:])


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="<class>/*.jpg of 32x32; default: made from photographs")
    parser.add_argument("--only", choices=["photographs", "medium", "small"], nargs="*", help="default: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "processor": processor(),
        "cores": torch.multiprocessing.cpu_count(),
        "workers": options.workers,
        "repeats": options.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "cases": {},
    }
    for name, value in report.items():
        if name != "cases":
            print(f"{name}: {value}")
    print(f"\n{'case':38}{'torchvision':>22}{'skipnets':>24}{'ratio':>8}   first batch after")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases: dict[str, tuple[str, int, int, Callable[[], Path]]] = {
            "photographs": (
                "4000x3000 → 224",
                224,
                16,
                lambda: make_folder(folder / "photographs", 4000, 3000, distinct=8, count=96, blur=0.8),
            ),
            "medium": (
                "500x400 → 224",
                224,
                64,
                lambda: make_folder(folder / "medium", 500, 400, distinct=256, count=1024),
            ),
            "small": (
                "32x32",
                32,
                64,
                lambda: options.cifar or make_folder(folder / "small", 32, 32, distinct=2000, count=20_000),
            ),
        }
        for name, (title, size, batch_size, make) in cases.items():
            if options.only and name not in options.only:
                continue
            result = compare(
                make(), size, batch_size=batch_size, workers=options.workers, repeats=options.repeats
            )
            report["cases"][name] = result
            cells = [
                f"{result['images_per_second'][side]:.0f} ({low:.0f}–{high:.0f})"
                for side, (low, high) in result["range"].items()
            ]
            first = result["seconds_to_first_batch"]
            size_kb = result["mean_file_bytes"] / 1000
            label = f"{name}, {title}, {size_kb:.0f} kB"
            print(
                f"{label:38}{cells[0]:>22}{cells[1]:>24}{result['ratio']:>8.2f}"
                f"   {first['torchvision']:.1f} s, {first['skipnets']:.1f} s"
            )
    if "small" in report["cases"]:
        report["training_rate"] = training_rate(options.repeats)
        rate = report["cases"]["small"]["images_per_second"]["skipnets"]
        print(
            f"\ndensenet_bc40_k12 trains on {report['training_rate']:.0f} images/s here; "
            f"its input arrives {rate / report['training_rate']:.0f} times as fast"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
