"""Images per second from tar shards against those from files, and what webdataset reads from the same shards.

    python benchmarks/shards.py
    python benchmarks/shards.py --data /path/to/folder --shard-size 16

Photographs are generated (see `input_pipeline.py`) unless --data names a folder. Both must give the same
batches, to the last bit, before anything is timed. Then passes alternate, and medians are shown with their
range. Read: the bytes of every image in an epoch's order, and as webdataset's reader goes through the shards
from front to back. Load: the batches of `training_loader`, decoded, cropped at random and resized, by none
and two workers. Cold: before each pass the system is told to drop the files' pages from its cache (their
names and inodes stay), which matters as much as the disk is slow. The processor's time an image, of the
process that reads, tells more than the rate where other work is going on.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import webdataset

from input_pipeline import make_folder
from skipnets.data import ImageDataset, Preprocessing, open_dataset, write_shards
from skipnets.data.loading import ImageLoader, training_loader


def drop_from_cache(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(dataset: ImageDataset) -> int:
    """Read every image's bytes, in an epoch's order; with its checksum, as loading does."""
    total = 0
    for index in np.random.default_rng(0).permutation(len(dataset)).tolist():
        source = dataset.source(index)
        content = source if isinstance(source, Path) else source.content()  # type: ignore[union-attr]
        total += len(content.read_bytes() if isinstance(content, Path) else content)
    return total


def read_webdataset(shards: list[Path]) -> int:
    total = 0
    for sample in webdataset.WebDataset([str(path) for path in shards], shardshuffle=False):
        total += sum(len(value) for name, value in sample.items() if name in ("jpg", "jpeg", "png"))
    return total


def load_all(loader: ImageLoader) -> int:
    return sum(len(index) for _, _, index in loader)


def check_equal(one: ImageLoader, other: ImageLoader) -> None:
    """The same batches."""
    for ours, theirs in zip(one, other, strict=True):
        assert all(torch.equal(mine, yours) for mine, yours in zip(ours, theirs, strict=True))


def compare(passes: dict[str, tuple[Callable[[], int], list[Path]]], count: int, repeats: int) -> None:
    """Time alternating passes, cold and warm, and print images per second."""
    for cold in (True, False):
        rates: dict[str, list[float]] = {name: [] for name in passes}
        costs: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(repeats):
            for name, (run, paths) in passes.items():
                if cold:
                    drop_from_cache(paths)
                start, used = time.perf_counter(), time.process_time()
                run()
                rates[name].append(count / (time.perf_counter() - start))
                costs[name].append((time.process_time() - used) / count * 1000)
        for name, measured in rates.items():
            middle = statistics.median(measured)
            temperature = "cold" if cold else "warm"
            spread = f"{min(measured):,.0f} to {max(measured):,.0f}"
            cost = "" if "2 workers" in name else f"{statistics.median(costs[name]):.2f}"
            print(f"| {name} | {temperature} | {middle:,.0f} | {spread} | {cost} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of images; default: generated photographs")
    parser.add_argument("--images", type=int, default=1500, help="how many are generated")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--shard-size", type=int, default=64, help="MiB")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, Pillow {PIL.__version__}")
    print(f"webdataset {webdataset.__version__}, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or make_folder(
            Path(temporary) / "data", 500, 375, distinct=100, count=options.images
        )
        start = time.perf_counter()
        written = write_shards(root, Path(temporary) / "shards", shard_size=options.shard_size)
        seconds = time.perf_counter() - start
        print(
            f"{written.images:,} images in {written.shards} shards, {written.bytes:,} bytes: {seconds:.1f} s"
        )
        files = open_dataset(root, fractions=None)
        shards = open_dataset(written.index.parent, fractions=None)
        paths = {
            "files": [files.file(index) for index in range(len(files))],
            "shards": sorted(written.index.parent.glob("*.tar")),
        }
        assert read_all(files) == read_all(shards) == read_webdataset(paths["shards"])
        print("\n| what | cache | images/s | range | processor ms an image |\n|---|---|---:|---:|---:|")
        compare(
            {
                "read, files": (lambda: read_all(files), paths["files"]),
                "read, shards": (lambda: read_all(shards), paths["shards"]),
                "read, webdataset": (lambda: read_webdataset(paths["shards"]), paths["shards"]),
            },
            len(files),
            options.repeats,
        )
        for workers in (0, 2):
            loaders = {
                name: training_loader(
                    dataset,
                    Preprocessing(options.size),
                    "resized-crop",
                    batch_size=32,
                    workers=workers,
                )
                for name, dataset in (("files", files), ("shards", shards))
            }
            check_equal(*loaders.values())
            compare(
                {
                    f"load, {name}, {workers} workers": (functools.partial(load_all, loader), paths[name])
                    for name, loader in loaders.items()
                },
                len(files),
                options.repeats,
            )
            for loader in loaders.values():
                loader.close()


if __name__ == "__main__":
    main()
