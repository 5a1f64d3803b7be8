"""Writing a dataset as shards: tar files in webdataset's layout, with an index (`skipnets.data.shards`).

Files are stored as they are, never decoded or encoded anew. Their order is shuffled once, so that readers
that go through a shard from front to back see all classes. Splits and groups that the data itself gives are
kept; splits that it does not give are left to whoever trains. The same data gives the same bytes, so a job
that was killed goes on at the first shard that is not complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipnets.data.contents import digest
from skipnets.data.dataset import ImageDataset, log_listing
from skipnets.data.options import DataOptions
from skipnets.data.shards import FORMAT, INDEX, VERSION
from skipnets.data.sources import find_with_own_splits
from skipnets.data.splits import SPLITS
from skipnets.errors import UserError, check_at_least_1, listed
from skipnets.files import atomic_path, is_temporary, remove_orphans

__all__ = ["Sharded", "write_shards"]

MEBIBYTES = 256
_OWN = re.compile(r"(?:images|train|val|test)-\d+\.(?:tar|json)")
# Of a tar file: what a member takes beside its bytes.
_BLOCK = 512
_OPTIONS_OF_READING = ("page", "max_pixels")


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What was written.

    Attributes:
        index: The index, which is written last.
        images: Number of images in all shards.
        bytes: Length of all shards.
        shards: Number of shards.
        kept: How many of them an earlier job had written.
    """

    index: Path
    images: int
    bytes: int
    shards: int
    kept: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {**vars(self), "index": str(self.index)}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a shard will hold.

    Attributes:
        file: Its name.
        split: Of its images; "" where the data does not give it.
        images: (n,) positions in the dataset.
        first: How many images the shards before it hold.
    """

    file: str
    split: str
    images: NDArray[np.int64]
    first: int


def write_shards(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_size: int = MEBIBYTES,
    seed: int = 0,
    options: DataOptions | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sharded:
    """Write the images of a dataset as shards, which `open_dataset` and webdataset read.

    Args:
        data: A folder or a manifest.
        out: A folder for the shards: a new one, or one that this was interrupted in, to go on.
        shard_size: Length of a shard in MiB, which only a larger image exceeds.
        seed: Of the order in which images are stored.
        options: How the data is read where it is ambiguous.
        progress: Called with the number of images done and of all.

    Raises:
        UserError: The data is wrong or not in files, or the folder holds something else.
    """
    check_at_least_1(shard_size=shard_size)
    options = options or DataOptions()
    for name in _OPTIONS_OF_READING:
        if (value := getattr(options, name)) is not None:
            raise UserError(f"{name}={value}: is for those who read the shards, which hold whole files")
    dataset = log_listing(find_with_own_splits(data, options=options))
    if dataset.root is None:
        raise UserError(f"data={data}: has no image files to put into shards")
    if dataset.members is not None:
        raise UserError(f"data={data}: holds shards already")
    names = _names_inside(dataset)
    sizes = _file_sizes(dataset)
    plans = list(_plan(dataset, sizes, shard_size * 2**20, seed))
    folder = Path(out)
    _check_folder(folder, {plan.file for plan in plans})
    shards, kept = [], 0
    for plan in plans:
        shard = _complete(folder, plan, dataset, names, sizes)
        kept += shard is not None
        if shard is None:
            shard = _write(folder, plan, dataset, names, progress)
        shards.append(shard)
        if progress is not None:
            progress(plan.first + len(plan.images), len(dataset))
    index = {
        "format": FORMAT,
        **({"version": VERSION} if dataset.task == "single-label" else {"version": 2, "task": dataset.task}),
        "classes": list(dataset.classes),
        "groups_found": dataset.listing.groups_found,
        "images": len(dataset),
        "shards": shards,
    }
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return Sharded(
        index=folder / INDEX,
        images=len(dataset),
        bytes=sum(shard["bytes"] for shard in shards),
        shards=len(shards),
        kept=kept,
    )


def _names_inside(dataset: ImageDataset) -> list[str]:
    """The images' names, without what makes a path absolute: shards may be read anywhere."""
    names = [
        name if not Path(name).is_absolute() else name[len(PureWindowsPath(name).drive) :].lstrip("/\\")
        for name in dataset.names
    ]
    if len(set(names)) < len(names):
        raise UserError("data: two images have the same path but for where it starts; --root may help")
    return names


def _file_sizes(dataset: ImageDataset) -> list[int]:
    """The size of each image's file in bytes."""
    sizes = []
    for index in range(len(dataset)):
        path = dataset.file(index)
        try:
            sizes.append(path.stat().st_size)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        if not path.is_file():
            raise UserError(f"{path}: a pipe, a socket or a device, not a file")
    return sizes


def _plan(dataset: ImageDataset, sizes: Sequence[int], most_bytes: int, seed: int) -> Iterator[_Plan]:
    """Which images go into which shard: every split shuffled, then cut where a shard is full."""
    first = 0
    for number, split in enumerate((*SPLITS, "")):
        members = np.flatnonzero(dataset.splits == split)
        members = np.random.default_rng((seed, number)).permutation(members)
        shards: list[list[int]] = []
        length = most_bytes
        for index in members.tolist():
            # The image, its class and its description, each behind a header and filled up to whole blocks.
            taken = sizes[index] + 6 * _BLOCK
            if length + taken > most_bytes:
                shards.append([])
                length = 0
            shards[-1].append(index)
            length += taken
        for position, images in enumerate(shards):
            file = f"{split or 'images'}-{position:05}.tar"
            yield _Plan(file=file, split=split, images=np.array(images, dtype=np.int64), first=first)
            first += len(images)


def _check_folder(folder: Path, files: set[str]) -> None:
    """A folder must be new, or hold nothing but shards of these names."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out={folder}: is a file; name a folder")
    if not folder.is_dir():
        return
    remove_orphans(folder)
    names = [path.name for path in folder.iterdir() if not is_temporary(path) and path.name != INDEX]
    others = [
        name for name in names if not (_OWN.fullmatch(name) and Path(name).with_suffix(".tar").name in files)
    ]
    if others:
        raise UserError(
            f"out={folder}: holds other files than these shards ({listed(sorted(others))}); name a new folder"
        )


def _complete(
    folder: Path, plan: _Plan, dataset: ImageDataset, names: Sequence[str], sizes: Sequence[int]
) -> dict[str, Any] | None:
    """What the index says of a shard that is complete; None if there is none, or a file changed since.

    Raises:
        UserError: The shard there is of other data.
    """
    path = folder / plan.file
    list_path = path.with_suffix(".json")
    if not (path.is_file() and list_path.is_file()):
        return None
    # A file may have other bytes than it had, and as many of them.
    written = list_path.stat().st_mtime_ns
    if any(dataset.file(index).stat().st_mtime_ns > written for index in plan.images.tolist()):
        return None
    content = list_path.read_bytes()
    wanted = _columns(plan, dataset, names) | {"sizes": [sizes[index] for index in plan.images.tolist()]}
    try:
        found = json.loads(content)
        same = all(found[name] == value for name, value in wanted.items())
        same = same and found["bytes"] == path.stat().st_size
        sha256 = str(found["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise UserError(
            f"out={folder}: holds shards of other data or of another size or seed, such as {plan.file}; "
            "name a new folder"
        )
    return _about(plan, path, sha256, content)


def _columns(plan: _Plan, dataset: ImageDataset, names: Sequence[str]) -> dict[str, Any]:
    """What is known of a shard's images before they are read."""
    images, of_shard = plan.images.tolist(), dataset.select(plan.images)
    return {
        "names": [names[index] for index in images],
        "labels": of_shard.labels.tolist() if dataset.task == "single-label" else of_shard.label_names,
        "groups": [] if dataset.groups is None else dataset.groups[plan.images].tolist(),
        "split": plan.split,
    }


def _about(plan: _Plan, path: Path, sha256: str, content: bytes) -> dict[str, Any]:
    """What the index says of a shard; `content` is the list of its images."""
    return {
        "file": plan.file,
        "split": plan.split,
        "images": len(plan.images),
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "index_sha256": hashlib.sha256(content).hexdigest(),
    }


def _write(
    folder: Path,
    plan: _Plan,
    dataset: ImageDataset,
    names: Sequence[str],
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]:
    """Write a shard, and then the list of its images, which says that it is complete."""
    path = folder / plan.file
    columns = _columns(plan, dataset, names)
    offsets, sizes, crcs, hashes = [], [], [], []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for number, index in enumerate(plan.images.tolist()):
                data = _read(dataset.file(index))
                key = f"{plan.first + number:09}"
                described = {
                    "name": columns["names"][number],
                    **_told(dataset, index),
                    **({"split": plan.split} if plan.split else {}),
                    **({"group": columns["groups"][number]} if columns["groups"] else {}),
                }
                offsets.append(_add(tar, f"{key}.{extension(names[index])}", data))
                if dataset.task == "single-label":
                    _add(tar, f"{key}.cls", str(int(dataset.labels[index])).encode())
                _add(tar, f"{key}.json", json.dumps(described).encode())
                sizes.append(len(data))
                crcs.append(zlib.crc32(data))
                hashes.append(digest(data))
                if progress is not None:
                    progress(plan.first + number, len(dataset))
    sha256 = hashed.sha256.hexdigest()
    columns |= {"offsets": offsets, "sizes": sizes, "crcs": crcs, "hashes": hashes}
    columns |= {"bytes": path.stat().st_size, "sha256": sha256}
    content = json.dumps(columns, separators=(",", ":")).encode()
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(content)
    return _about(plan, path, sha256, content)


def _told(dataset: ImageDataset, index: int) -> dict[str, Any]:
    """What an image's description says of its class, its labels or its numbers; of those that are known."""
    label = dataset.labels[index]
    if dataset.task == "single-label":
        return {"label": dataset.classes[label]}
    known = [
        (name, value) for name, value in zip(dataset.classes, label.tolist(), strict=True) if value == value
    ]
    if dataset.regression:
        return {"numbers": dict(known)}
    return {"labels": {name: int(value) for name, value in known}}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def extension(name: str) -> str:
    """The suffix by which webdataset's readers know the kind of an image's file; "bin" without one.

    A key ends at the first dot, and `cls` and `json` are not images.
    """
    if name.lower().endswith(".nii.gz"):
        return "nii.gz"
    suffix = Path(name).suffix.lower()[1:]
    return suffix if re.fullmatch("[a-z0-9]+", suffix) and suffix not in ("cls", "json") else "bin"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file to a tar file; where its bytes begin.

    No time and no owner: the same data gives the same shard.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + _BLOCK  # the header of a short name is one block
    tar.addfile(info, io.BytesIO(data))
    return int(offset)


class _Hashed:
    """A file to be written that computes its checksum on the way.

    Args:
        file: At its start.

    Attributes:
        sha256: Of what was written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()
