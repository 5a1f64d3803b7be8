"""How well, and how fast, copies of images are found: recall and precision for each alteration.

    python benchmarks/duplicates.py cifar10-jpeg --images 10000 --altered 500
    python benchmarks/duplicates.py cifar10-jpeg --speed            # --scale 0.1: a tenth of the images

Of so many images of a folder (at any depth), some get an altered copy each: saved as JPEG anew, resized,
brightened, cut, mirrored, both. Recall is the share of these copies that is found; precision is the share
of pairs found that were made here, so copies that were in the data before count against it (CIFAR-10 has
hundreds; --show writes them as a sheet). The same is measured for perceptual and difference hashes of 64
bits, each at the Hamming distance that gives it the best F1 (pip install ImageHash; or pip install
imagededup, and --methods imagededup-phash imagededup-dhash).

Time is the wall time of `find_copies` and of hashing the files, on the images as they lie on the disk.
--speed measures it for 50,000 images of the folder, and for 5,000 JPEGs of 400×500 pixels (images of the
folder, enlarged and with noise, so that decoding takes as long as of a photograph), at half and at the full
number, each in a process of its own: with the processor time, and by how much its memory grows at most.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from skipnets.data.contents import contents
from skipnets.data.copies import find_copies
from skipnets.data.dataset import ImageDataset
from skipnets.data.layout import images_below

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]
Pairs = set[tuple[int, int]]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """A part with so much of the width and height, anywhere."""
    width, height = round(image.width * share), round(image.height * share)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


ALTERATIONS: dict[str, Alteration] = {
    "JPEG 75": lambda image, _: jpeg(image, 75),
    "JPEG 50": lambda image, _: jpeg(image, 50),
    "JPEG 30": lambda image, _: jpeg(image, 30),
    "resized to 75%": lambda image, _: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "resized to 200%": lambda image, _: image.resize((image.width * 2, image.height * 2)),
    "brightness 80%": lambda image, _: ImageEnhance.Brightness(image).enhance(0.8),
    "brightness 120%": lambda image, _: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast 130%": lambda image, _: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image, _: image.convert("L").convert("RGB"),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "cut to 95%": lambda image, generator: crop(image, 0.95, generator),
    "cut to 90%": lambda image, generator: crop(image, 0.9, generator),
    "mirrored, cut to 90%, JPEG 60": lambda image, generator: jpeg(
        crop(ImageOps.mirror(image), 0.9, generator), 60
    ),
}


# Beyond what the search is made for.
HARDER: dict[str, Alteration] = {
    "cut to 75%": lambda image, generator: crop(image, 0.75, generator),
    "turned by 10°": lambda image, _: image.rotate(10, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)),
    "turned by 90°": lambda image, _: image.transpose(Image.Transpose.ROTATE_90),
    "hue": lambda image, _: Image.merge("RGB", image.split()[::-1]),
    "noise": lambda image, generator: Image.fromarray(
        (np.asarray(image) + generator.normal(0, 25, (image.height, image.width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
}


def dataset_of(root: Path, names: list[str]) -> ImageDataset:
    count = len(names)
    return ImageDataset(
        classes=("image",),
        names=names,
        labels=np.zeros(count, dtype=np.int64),
        splits=np.full(count, "train"),
        root=root,
    )


def ours(dataset: ImageDataset) -> tuple[Pairs, float]:
    start = time.perf_counter()
    copies = find_copies(dataset, contents(dataset))
    return {(copy.first, copy.second) for copy in copies}, time.perf_counter() - start


def embedded(dataset: ImageDataset, model: Path, made: Pairs) -> tuple[Pairs, float]:
    """Pairs of neighbors in the embedding of a classifier, each image also mirrored, at the best F1."""
    import skipnets

    classifier = skipnets.load(model)
    start = time.perf_counter()

    def embed(mirror: bool) -> NDArray[np.float32]:
        images = (dataset.open(index).convert("RGB") for index in range(len(dataset)))
        turned = [ImageOps.mirror(image) if mirror else image for image in images]
        features = classifier.embed(turned)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    best = neighbors(embed(False), embed(True))
    seconds = time.perf_counter() - start
    return best_pairs(best, made, np.linspace(0, 0.5, 201).tolist()), seconds


def neighbors(plain: NDArray[np.float32], mirrored: NDArray[np.float32]) -> dict[tuple[int, int], float]:
    """Pair → squared distance, of each image with its four nearest, as it is and mirrored."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(plain)
    best: dict[tuple[int, int], float] = {}
    for queries in (plain, mirrored):
        distances, found = index.kneighbors(queries, n_neighbors=5)
        for one, (others, away) in enumerate(zip(found.tolist(), distances.tolist(), strict=True)):
            for other, distance in zip(others, away, strict=True):
                if one != other:
                    key = (min(one, other), max(one, other))
                    best[key] = min(best.get(key, np.inf), distance)
    return best


def best_pairs(best: dict[tuple[int, int], float], made: Pairs, limits: list[float]) -> Pairs:
    """The pairs within the distance at which their F1 is best."""

    def within(limit: float) -> Pairs:
        return {pair for pair, distance in best.items() if distance <= limit}

    def f1(limit: float) -> float:
        pairs = within(limit)
        return 2 * len(pairs & made) / (len(pairs) + len(made))

    return within(max(limits, key=f1))


def hash_of(name: str) -> Callable[[Image.Image], NDArray[Any]]:
    """An image's 64 bits by ImageHash, or by imagededup."""
    if name.startswith("imagededup-"):
        from imagededup.methods import DHash, PHash

        method = {"imagededup-phash": PHash, "imagededup-dhash": DHash}[name](verbose=False)
        return lambda image: np.unpackbits(
            np.frombuffer(bytes.fromhex(method.encode_image(image_array=np.asarray(image))), np.uint8)
        )
    import imagehash

    function = getattr(imagehash, name)
    return lambda image: function(image).hash.ravel()


def hashed(dataset: ImageDataset, name: str, made: Pairs) -> tuple[Pairs, float]:
    """Pairs by a library's hash, each image also mirrored, at the distance with the best F1."""
    hash_image = hash_of(name)
    start = time.perf_counter()

    def bits(mirror: bool) -> NDArray[np.float32]:
        images = (Image.open(dataset.file(index)).convert("RGB") for index in range(len(dataset)))
        turned = (ImageOps.mirror(image) if mirror else image for image in images)
        return np.stack([hash_image(image) for image in turned]).astype(np.float32)

    best = neighbors(bits(False), bits(True))
    seconds = time.perf_counter() - start
    return best_pairs(best, made, [float(bits) for bits in range(25)]), seconds


def photograph(path: Path, generator: np.random.Generator, target: Path) -> None:
    """Write a JPEG of 400×500 pixels with the noise of a camera."""
    with Image.open(path) as image:
        large = np.asarray(
            image.convert("RGB").resize((400, 500), Image.Resampling.BICUBIC), dtype=np.float32
        )
    noisy = large + generator.normal(0, 6, large.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def timed(root: str, names: list[str]) -> dict[str, float]:
    """Seconds and MiB that the search takes in this process."""
    find_copies(dataset_of(Path(root), names[:2]), [])  # imports
    dataset = dataset_of(Path(root), names)
    before = psutil.Process().memory_info().rss
    start, processor = time.perf_counter(), time.process_time()
    copies = find_copies(dataset, contents(dataset))
    return {
        "images": len(names),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20),
        "copies": len(copies),
    }


def speed(paths: list[Path], scale: float, generator: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        small = [str(path.resolve()) for path in paths[: round(50_000 * scale)]]
        large = []
        for number in range(round(5_000 * scale)):
            large.append(f"{number}.jpg")
            photograph(paths[number], generator, Path(folder, large[-1]))
        for kind, names in (("32×32", small), ("400×500", large)):
            for part in (names[: len(names) // 2], names):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    rows.append({"kind": kind, **pool.submit(timed, folder, part).result()})
                print(json.dumps(rows[-1], ensure_ascii=False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--altered", type=int, default=500, help="copies for each alteration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["ours", "phash", "dhash"])
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--harder", action="store_true", help="other alterations, harder to see through")
    parser.add_argument("--model", type=Path, help="a classifier for the method embedding")
    parser.add_argument("--speed", action="store_true", help="measure time and memory alone")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of images for --speed")
    parser.add_argument("--show", type=Path, help="a PNG of pairs that were found and not made")
    arguments = parser.parse_args()

    generator = np.random.default_rng(arguments.seed)
    every = images_below(arguments.folder)
    chosen = [every[int(i)] for i in generator.permutation(len(every))[: arguments.images]]
    results: list[dict[str, Any]] = []
    if arguments.speed:
        shuffled = [every[int(i)] for i in generator.permutation(len(every))]
        results = speed(shuffled, arguments.scale, generator)
        return write(arguments, results)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(path.resolve()) for path in chosen]
        made: dict[str, Pairs] = {}
        sources = iter(generator.permutation(len(chosen)).tolist())
        for kind, alter in (HARDER if arguments.harder else ALTERATIONS).items():
            made[kind] = set()
            for _ in range(arguments.altered):
                source = next(sources, None)
                if source is None:
                    sys.exit("too few images for so many altered copies: each is altered once at most")
                with Image.open(chosen[source]) as image:
                    altered = alter(image.convert("RGB"), generator)
                path = Path(folder, f"{len(names)}.png")
                altered.save(path)
                made[kind].add((source, len(names)))
                names.append(str(path))
        dataset = dataset_of(Path(folder), names)
        all_made = set().union(*made.values())
        found_by: dict[str, Pairs] = {}
        for method in arguments.methods:
            if method == "ours":
                pairs, seconds = ours(dataset)
            elif method == "embedding":
                pairs, seconds = embedded(dataset, arguments.model, all_made)
            else:
                pairs, seconds = hashed(dataset, method, all_made)
            found_by[method] = pairs
            row = {
                "method": method,
                "images": len(names),
                "seconds": round(seconds, 1),
                "recall": round(len(pairs & all_made) / len(all_made), 4),
                "precision": round(len(pairs & all_made) / max(len(pairs), 1), 4),
                "recall_by_kind": {
                    kind: round(len(pairs & some) / len(some), 4) for kind, some in made.items()
                },
            }
            if method == "embedding" and "ours" in found_by:
                both = pairs | found_by["ours"]
                row["recall_with_ours"] = round(len(both & all_made) / len(all_made), 4)
                row["precision_with_ours"] = round(len(both & all_made) / len(both), 4)
            results.append(row)
            print(json.dumps(row, indent=2, ensure_ascii=False), flush=True)
            if method == "ours" and arguments.show:
                show(dataset, sorted(pairs - all_made)[:60], arguments.show)
    return write(arguments, results)


def write(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    record = {
        "machine": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "seed": arguments.seed,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def show(dataset: ImageDataset, pairs: list[tuple[int, int]], path: Path) -> None:
    """Draw pairs of images, one above the other."""
    sheet = Image.new("RGB", (20 * 66, -(-len(pairs) // 20) * 136 or 1), "white")
    for number, pair in enumerate(pairs):
        for row, index in enumerate(pair):
            image = dataset.open(index).convert("RGB").resize((64, 64))
            sheet.paste(image, (number % 20 * 66, number // 20 * 136 + row * 66))
    sheet.save(path)


if __name__ == "__main__":
    main()
