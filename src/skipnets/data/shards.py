"""Reading a folder of shards: tar files of images, and an index that says where in them each image lies.

The layout is webdataset's (`KEY.jpg`, `KEY.json` and, of images with one class, `KEY.cls` in uncompressed tar
files), so that its readers and others take the folder as it is. The index makes every image reachable by
itself: `index.json` lists classes and shards, and beside each shard a JSON file of its name lists the images
in it. An index is checked before it is used, since it may come from anywhere. N images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.decoding import Member
from skipnets.data.listing import Entry, Listing, counted
from skipnets.data.multi_label import check_names, labels_from_texts
from skipnets.data.splits import SPLITS
from skipnets.data.targets import check_target_texts
from skipnets.errors import UserError, listed

__all__ = ["INDEX", "Members", "is_sharded", "read_shards"]

INDEX = "index.json"
FORMAT = "skipnets-shards"
VERSION = 1
"""Of shards of images with one class; of others 2, which states the task."""
_TASKS = ("multi-label", "regression")
# No folders, so that no shard lies outside the folder of its index.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """Where in shards images lie.

    Attributes:
        files: The shards.
        numbers: (N,) position in `files` of each image's shard.
        names: (N,) what each image's file was called.
        offsets: (N,) where it begins in its shard, in bytes.
        sizes: (N,) in bytes.
        crcs: (N,) CRC-32 of its bytes.
        hashes: (N,) of its bytes (`skipnets.data.contents.digest`), ASCII.
    """

    files: tuple[Path, ...]
    numbers: NDArray[np.int64]
    names: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.int64]
    hashes: NDArray[np.bytes_]

    def file(self, index: int) -> Path:
        """The shard that an image lies in."""
        return self.files[self.numbers[index]]

    def __getitem__(self, index: int) -> Member:
        return Member(
            self.names[index], int(self.offsets[index]), int(self.sizes[index]), int(self.crcs[index])
        )

    def select(self, indices: NDArray[np.int64]) -> Members:
        """Those of the images at these positions, in this order."""
        return Members(
            files=self.files,
            numbers=self.numbers[indices],
            names=[self.names[index] for index in indices],
            offsets=self.offsets[indices],
            sizes=self.sizes[indices],
            crcs=self.crcs[indices],
            hashes=self.hashes[indices],
        )


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards with their index.

    Raises:
        UserError: It holds one of the two without the other.
    """
    index = folder / INDEX
    try:
        if index.is_file():
            with index.open("rb") as file:
                if f'"{FORMAT}"'.encode() in file.read(200):
                    return True
        alone = any(path.with_suffix(".tar").exists() for path in folder.glob("*-[0-9]*.json"))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror or error}") from error
    if alone:
        raise UserError(
            f"{folder}: holds shards without their {INDEX}, which is written last: give the skipnets shard "
            "command that wrote them again"
        )
    return False


def read_shards(folder: Path) -> tuple[Listing, Members]:
    """The images of a folder of shards with their classes, splits and groups, in the order of the index.

    Raises:
        UserError: A shard is missing, of another length than it was written with, or another set's; or the
            index is damaged, or leads out of the folder.
    """
    path = folder / INDEX
    index = _Object.read(path)
    if (version := index.integer("version")) not in (VERSION, 2):
        raise UserError(f"{path}: version={version}: must be {VERSION} or 2, which this program reads")
    task = "single-label" if version == VERSION else index.string("task")
    if version == 2 and task not in _TASKS:
        raise UserError(f"{path}: task={task!r}: must be one of {', '.join(_TASKS)}")
    classes = index.strings("classes")
    if not classes or len(set(classes)) < len(classes) or not all(classes):
        raise UserError(f"{path}: classes={listed(classes)}: must be names, each once")
    if task == "multi-label":
        check_names(classes)
    listing = Listing(layout="shards", root=folder, classes=classes)
    listing.multi_label, listing.regression = task == "multi-label", task == "regression"
    listing.groups_found = index.get("groups_found") is True
    parts: list[_Shard] = []
    for values in index.objects("shards"):
        shard = _Shard.read(folder, values, classes, task)
        parts.append(shard)
        groups = shard.groups or [""] * len(shard.names)
        listing.entries += [
            Entry(name, label, shard.split, group)
            for name, label, group in zip(shard.names, shard.labels, groups, strict=True)
        ]
    names = [name for shard in parts for name in shard.names]
    if not names:
        raise UserError(f"{path}: lists no images")
    if (images := index.integer("images")) != len(names):
        raise UserError(f"{path}: images={images}: must be {len(names)}, as its shards hold")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: lists an image twice")
    listing.notes.append(f"{counted(len(parts), 'shard')} of {sum(shard.bytes for shard in parts):,} bytes")
    return listing, Members(
        files=tuple(shard.path for shard in parts),
        numbers=np.repeat(np.arange(len(parts)), [len(shard.names) for shard in parts]),
        names=names,
        offsets=np.concatenate([shard.offsets for shard in parts]),
        sizes=np.concatenate([shard.sizes for shard in parts]),
        crcs=np.concatenate([shard.crcs for shard in parts]),
        hashes=np.concatenate([shard.hashes for shard in parts]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    """A shard as the index describes it, checked; n images.

    Attributes:
        path: The tar file.
        bytes: Its length.
        split: Of all of its images; "" where the data does not give it.
        names: Of the n images.
        labels: Of the images, as in `Entry`.
        groups: Of the images; empty where there are none.
        offsets: (n,) in bytes.
        sizes: (n,) in bytes.
        crcs: (n,) CRC-32.
        hashes: (n,) ASCII.
    """

    path: Path
    bytes: int
    split: str
    names: list[str]
    labels: list[str]
    groups: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.int64]
    hashes: NDArray[np.bytes_]

    @classmethod
    def read(cls, folder: Path, about: _Object, classes: Sequence[str], task: str) -> _Shard:
        """Read the list of a shard's images.

        Args:
            folder: Where it lies.
            about: What index.json says of it.
            classes: Of all images.
            task: Likewise.
        """
        file = about.string("file")
        if _FILE.fullmatch(file) is None:
            raise UserError(f"{about.path}: file={file!r}: must be the name of a .tar file in its folder")
        path = folder / file
        length, split = about.integer("bytes"), about.string("split")
        if split not in ("", *SPLITS):
            raise UserError(f"{about.path}: split={split!r}: must be one of {', '.join(SPLITS)}, or empty")
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {about.path.name} lists it")
        if (actual := path.stat().st_size) != length:
            raise UserError(
                f"{path}: has {actual:,} bytes, where {about.path.name} says {length:,}: it was cut short, "
                "or is of another set"
            )
        images = _Object.read(path.with_suffix(".json"), sha256=about.string("index_sha256"))
        names, groups, hashes = images.strings("names"), images.strings("groups"), images.strings("hashes")
        labels = _label_texts(images, classes, task)
        columns = {name: images.integers(name) for name in ("offsets", "sizes", "crcs")}
        counts = {
            len(names),
            len(labels),
            len(hashes),
            *map(len, columns.values()),
            *({len(groups)} if groups else ()),
        }
        if counts != {about.integer("images")}:
            raise UserError(f"{images.path}: its lists differ in length from what {about.path.name} says")
        for name in names:
            _check_name(images.path, name)
        offsets, sizes, crcs = columns.values()
        # A sum could be beyond what 64 bits hold.
        if len(sizes) and (min(offsets.min(), sizes.min()) < 0 or (offsets > length - sizes).any()):
            raise UserError(f"{images.path}: places an image outside {file}")
        if not all(map(_HASH.fullmatch, hashes)):
            raise UserError(f"{images.path}: hashes: must have 32 hexadecimal digits each")
        return cls(
            path=path,
            bytes=length,
            split=split,
            names=names,
            labels=labels,
            groups=groups,
            offsets=offsets,
            sizes=sizes,
            crcs=crcs,
            hashes=np.array(hashes, dtype="S32"),
        )


def _label_texts(images: _Object, classes: Sequence[str], task: str) -> list[str]:
    """The labels of a shard's images, as in `Entry`."""
    if task == "single-label":
        labels = images.integers("labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            last = len(classes) - 1
            raise UserError(f"{images.path}: labels: must be from 0 to {last}, as there are classes")
        return [classes[label] for label in labels.tolist()]
    texts = images.strings("labels")
    try:
        if task == "multi-label":
            labels_from_texts(texts, classes)
        else:
            check_target_texts(texts, classes)
    except UserError as error:
        raise UserError(f"{images.path}: labels: {error}") from error
    return texts


def _check_name(path: Path, name: str) -> None:
    """A name must not lead out of the folder, wherever it is used as a path."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or PureWindowsPath(name).drive:
        raise UserError(f"{path}: names={name!r}: must be a path without .. and not absolute")


@dataclass(frozen=True)
class _Object:
    """An object of a JSON file, whose values are checked as they are taken.

    Attributes:
        path: The file, for messages.
        values: What it holds.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, sha256: str | None = None) -> _Object:
        """Read a file, which must have this checksum if one is given."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path}: is not the one that {INDEX} was written with: cut short, or of another set"
            )
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a whole JSON file ({type(error).__name__})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: must hold a JSON object")
        return cls(path, values)

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def integer(self, name: str) -> int:
        value = self.get(name)
        if type(value) is not int or value < 0:
            raise self._wrong(name, "a number from 0")
        return value

    def string(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def strings(self, name: str) -> list[str]:
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "a list of texts")
        try:
            "".join(values).encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise self._wrong(name, "a list of texts in Unicode") from None
        return values

    def integers(self, name: str) -> NDArray[np.int64]:
        values = self._list(name)
        try:
            if all(type(value) is int for value in values):
                return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
        raise self._wrong(name, "a list of whole numbers")

    def objects(self, name: str) -> list[_Object]:
        values = self._list(name)
        if not all(isinstance(value, dict) for value in values):
            raise self._wrong(name, "a list of objects")
        return [_Object(self.path, value) for value in values]

    def _list(self, name: str) -> list[Any]:
        values = self.get(name)
        if not isinstance(values, list):
            raise self._wrong(name, "a list")
        return values

    def _wrong(self, name: str, right: str) -> UserError:
        return UserError(f"{self.path}: {name}: must be {right}")
