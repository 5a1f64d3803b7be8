"""Which images are named as dark, overexposed or blurred: those made so, and those as they should be.

    python benchmarks/appearance.py cifar10-jpeg/test

Three sets: so many images of a folder, scikit-learn's digits, and parts of its two photographs at 400×320
pixels. A tenth of each set gets a copy at a fifth of its brightness, a tenth one that is overexposed, a
tenth one that is blurred by a Gaussian of 1/25 of its longer side. Printed are the share of the images as
they are that `skipnets audit` names, and the share of each kind of altered ones that it names as such. The
same for cleanvision's checks with their defaults (pip install cleanvision), with the time that each takes
in one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from skipnets.data.appearance import measure_appearance
from skipnets.data.dataset import ImageDataset
from skipnets.data.layout import images_below
from skipnets.report.findings import appearance_findings

ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.2),
    "bright": lambda image: image.point(lambda level: 245 + level // 26),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 25)),
}
CLEANVISION = {
    "dark": "dark",
    "light": "bright",
    "blurry": "blurred",
    "low_information": "low-information",
}


def folder_images(path: Path, count: int, generator: np.random.Generator) -> list[Image.Image]:
    every = images_below(path)
    return [Image.open(every[int(i)]).convert("RGB") for i in generator.permutation(len(every))[:count]]


def digit_images(count: int, generator: np.random.Generator) -> list[Image.Image]:
    pixels = load_digits().images * 255 / 16
    chosen = generator.permutation(len(pixels))[:count]
    return [Image.fromarray(pixels[i].round().astype(np.uint8)) for i in chosen]


def photograph_images(count: int, generator: np.random.Generator) -> list[Image.Image]:
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    parts = []
    for number in range(count):
        whole = photographs[number % 2]
        width, height = (round(length * generator.uniform(0.4, 0.9)) for length in whole.size)
        left, top = (
            int(generator.integers(length - part))
            for length, part in zip(whole.size, (width, height), strict=True)
        )
        parts.append(whole.crop((left, top, left + width, top + height)).resize((400, 320)))
    return parts


def ours(dataset: ImageDataset) -> set[tuple[str, str]]:
    kinds = {*ALTERATIONS, "low-information", "low-contrast", "blank"}
    found = appearance_findings(dataset, measure_appearance(dataset))
    return {(finding.name, finding.kind) for finding in found if finding.kind in kinds}


def cleanvision(dataset: ImageDataset) -> set[tuple[str, str]]:
    from cleanvision import Imagelab

    files = {str(dataset.file(index)): name for index, name in enumerate(dataset.names)}
    lab = Imagelab(filepaths=list(files))
    lab.find_issues({name: {} for name in CLEANVISION}, n_jobs=1, verbose=False)
    return {
        (files[path], kind)
        for name, kind in CLEANVISION.items()
        for path in lab.issues.index[lab.issues[f"is_{name}_issue"]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["ours", "cleanvision"])
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    sets = {
        "folder": folder_images(arguments.folder, arguments.images, generator),
        "digits": digit_images(arguments.images, generator),
        "photographs": photograph_images(arguments.images // 5, generator),
    }
    for name, images in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            names = []
            for number, image in enumerate(images):
                names.append(f"{number}.png")
                image.save(Path(folder, names[-1]))
                for kind, alter in ALTERATIONS.items():
                    if number % 10 == 0:
                        names.append(f"{number}-{kind}.png")
                        alter(image).save(Path(folder, names[-1]))
            dataset = ImageDataset(
                classes=("image",),
                names=names,
                labels=np.zeros(len(names), dtype=np.int64),
                splits=np.full(len(names), ""),
                root=Path(folder),
            )
            for method in arguments.methods:
                start = time.perf_counter()
                found = {"ours": ours, "cleanvision": cleanvision}[method](dataset)
                seconds = time.perf_counter() - start
                named = {image for image, _ in found}
                row = {"set": name, "images": len(names), "method": method, "seconds": round(seconds, 1)}
                plain = [image for image in names if "-" not in image]
                row["as they are"] = round(sum(image in named for image in plain) / len(plain), 4)
                for kind in ALTERATIONS:
                    altered = [image for image in names if image.endswith(f"-{kind}.png")]
                    row[kind] = round(sum((image, kind) in found for image in altered) / len(altered), 4)
                print(json.dumps(row))
    print(json.dumps({"machine": platform.processor() or platform.machine(), "numpy": np.__version__}))


if __name__ == "__main__":
    main()
