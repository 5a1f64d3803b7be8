"""Batch prediction: any number of images into a folder of Parquet files, resumable, in shards.

The files alone show what is finished. Each is complete or not there, and names in its metadata the
sources that were read to their end with it. A job that starts again passes over those, and, in sources that
were begun or have changed, over the images that a file has a row for, whichever address they came by. So no
image is lost or repeated, whatever moment a job was killed at. Rows of files that could not be read, as of a
store that did not answer, are taken out by the next job, which tries them again. Names are as they were
typed; the metadata say which folder they are relative to, and which are not of this machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets.classifier import Classifier, Prediction
from skipnets.data.decoding import ImageDecodeError, Source
from skipnets.data.streams import (
    ImageSource,
    Shard,
    UnlistedError,
    check_addresses,
    image_sources,
    is_failed_read,
    unreadable_image,
)
from skipnets.description import Description
from skipnets.errors import UserError, missing_extra
from skipnets.files import atomic_path
from skipnets.origin import Origin
from skipnets.prediction import number_columns, uncertainty_columns
from skipnets.runtimes.model_file import read_model_file
from skipnets.selection import check_calibrated

__all__ = ["BatchResult", "fingerprint", "is_replaced", "predict_to_folder", "shards_of", "summary_of"]

_METADATA = b"skipnets"
_PART = re.compile(r"part(?:-(\d+)-of-(\d+))?-(\d+)\.parquet")
_ROWS = 20_000
_SECONDS = 300.0
_DIGEST_BYTES = 16
_FAILURES_NAMED = 20


@dataclass
class BatchResult:
    """What a job did.

    Attributes:
        rows: Images that it predicted.
        failed: How many of them could not be read or are no images; their rows have an `error`.
        skipped: Images that an earlier job had predicted, in sources that it had not finished.
        files: Files that it wrote.
        failures: Path → reason of the first that failed.
    """

    rows: int = 0
    failed: int = 0
    skipped: int = 0
    files: list[Path] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def predict_to_folder(
    classifier: Classifier,
    addresses: Iterable[str],
    output: str | os.PathLike[str],
    *,
    top_k: int = 1,
    coverage: float | None = None,
    reject: float | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    shard: Shard = Shard(),  # noqa: B008
    rows_per_file: int = _ROWS,
    seconds_per_file: float = _SECONDS,
    lock_seconds: float = 0.0,
    progress: Callable[[BatchResult], None] | None = None,
) -> BatchResult:
    """Classify all images at some addresses, and write a row for each; goes on where an earlier job stopped.

    Args:
        classifier: Classifies them.
        addresses: As of `skipnets.data.streams.image_sources`.
        output: A folder for Parquet files with the columns path, label, probability, then label_2,
            probability_2 …, and those of `skipnets.prediction.uncertainty_columns`, error and source; of a
            multi-label classifier path, labels ("cat|dog"), "p:NAME" for each label, error and source; of a
            regression path, each target (with coverage also "low:NAME" and "high:NAME"), error and source.
            Jobs of other shards may write into it at the same time.
        top_k: Number of classes in a row.
        coverage: Of prediction sets, as for `Classifier.predict`.
        reject: The share of images to reject, as for `Classifier.predict`.
        batch_size: Images per forward pass.
        workers: Threads that read images; None uses one per core.
        shard: The part of the images that this job classifies.
        rows_per_file: A file is written after so many rows,
        seconds_per_file: or after so many seconds, which is what a job that is killed loses at most.
        lock_seconds: How long to wait for another job that writes the same shard.
        progress: Called after every row.

    Raises:
        UserError: If there is nothing at an address, or the folder holds predictions of another model, of
            other options, cannot be written, or is being written by another job; if the classifier's file
            was replaced, see `fingerprint`; and of one shard of several, if a folder or a Parquet file could
            not be listed, so that nothing says which of what comes after it belongs to the shard.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise missing_extra("scale", "pyarrow") from None
    addresses = list(addresses)
    check_addresses(addresses)
    check_calibrated(classifier, coverage=coverage, reject=reject)
    classifier.preprocessing.require_images(f"output={output} (a folder)")
    folder = Path(output)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    top_k = min(top_k, len(classifier.classes))
    about: dict[str, Any] = {"model": fingerprint(classifier), "top_k": top_k}
    about |= {"coverage": coverage, "reject": reject}
    about["tta"] = None if classifier.tta == "none" else classifier.tta
    with _locked(folder / f".shard-{shard.number}-of-{shard.count}.lock", lock_seconds):
        for orphan in folder.glob(f".{_prefix(shard)}*.tmp.parquet"):
            orphan.unlink()  # of a job that was killed
        earlier = _Earlier(folder, shard, about)
        result = BatchResult()
        stream = _Stream(image_sources(addresses), shard, earlier, result)
        labels = classifier.classes if classifier.task == "multi-label" else ()
        targets = classifier.classes if classifier.task == "regression" else ()
        writer = _Writer(folder, shard, about, top_k, earlier.next_number, labels, targets)
        started = time.monotonic()
        predictions = classifier.predict_named(
            stream,
            top_k,
            coverage=coverage,
            reject=reject,
            batch_size=batch_size,
            workers=workers,
            failed=stream.failed,
        )
        try:
            for prediction in predictions:
                source, unread = stream.take(prediction.source)
                writer.add(prediction, source, unread=unread)
                result.rows += 1  # from here on it counts: Ctrl-C may come between any two lines
                if prediction.error is not None:
                    result.failed += 1
                    if len(result.failures) < _FAILURES_NAMED:
                        result.failures[prediction.source] = prediction.error
                if writer.count >= rows_per_file or time.monotonic() - started > seconds_per_file:
                    result.files.append(writer.write(stream.finished(result.rows), stream.begun()))
                    started = time.monotonic()
                if progress is not None:
                    progress(result)
        finally:  # also the rows of a job that an error ends
            if writer.count:
                result.files.append(writer.write(stream.finished(result.rows), stream.begun()))
    return result


def shards_of(folder: Path) -> int | None:
    """Into how many shards a folder's predictions are divided; None where there are none."""
    found = (_PART.fullmatch(path.name) for path in folder.glob("part-*.parquet"))
    return next((int(match[2] or 1) for match in found if match is not None), None)


def summary_of(files: Sequence[Path]) -> BatchResult:
    """What a job did, by the files that it wrote."""
    import pyarrow.compute
    import pyarrow.parquet

    result = BatchResult(files=list(files))
    for path in files:
        table = pyarrow.parquet.read_table(path, columns=["path", "error"])
        failed = table.filter(pyarrow.compute.is_valid(table["error"]))
        result.rows += table.num_rows
        result.failed += failed.num_rows
        for row in failed.slice(0, _FAILURES_NAMED - len(result.failures)).to_pylist():
            result.failures[row["path"]] = row["error"]
    return result


class _Stream:
    """The images that are still to be predicted, and which sources they end.

    Args:
        sources: All sources.
        shard: Which of them are this job's.
        earlier: What earlier jobs did.
        result: Counts what is skipped.
    """

    def __init__(
        self, sources: Iterator[ImageSource], shard: Shard, earlier: _Earlier, result: BatchResult
    ) -> None:
        self._sources = sources
        self._shard = shard
        self._earlier = earlier
        self._result = result
        self._ahead: deque[ImageSource] = deque()  # those of images that are read ahead
        self._given = 0
        self._ends: deque[tuple[int, ImageSource]] = deque()
        self._unread: set[str] = set()  # images and sources that the next job tries again
        self._unfinished: set[str] = set()  # sources that have such images
        self._begun: dict[str, int] = {}

    def __iter__(self) -> Iterator[tuple[str, Source]]:
        wholes = 0
        for source in self._sources:
            if source.whole:
                wholes += 1
                if not self._shard.has_index(wholes - 1):
                    continue
            if self._earlier.has_finished(source):
                continue
            for path, image in self._read(source):
                self._given += 1
                self._ahead.append(source)
                yield path, image
            if source.stamp:
                self._ends.append((self._given, source))

    def _read(self, source: ImageSource) -> Iterator[tuple[str, Source]]:
        """The images of a source that are wanted, and one that fails where the source itself does."""
        wanted = self._wanted(source)
        try:
            yield from source.read(wanted)
        except OSError as error:
            if self._shard.count > 1 and isinstance(error, UnlistedError):
                raise UserError(
                    f"images: {source.name} could not be listed ({error}), so that it is not known which "
                    "images are of this shard; start its job again"
                ) from error
            self._unfinished.add(source.name)
            if source.name not in self._unread and wanted(source.name):
                self._unread.add(source.name)
                yield source.name, unreadable_image(error.strerror or str(error))

    def failed(self, name: str, error: ImageDecodeError) -> None:
        """Note that an image could not be read."""
        if is_failed_read(error.__cause__):
            self._unread.add(name)

    def take(self, name: str) -> tuple[ImageSource, bool]:
        """The source of the next image, in the order they were given in, and whether it could not be read."""
        source = self._ahead.popleft()
        unread = name in self._unread
        if unread:
            self._unfinished.add(source.name)
        if source.whole:
            # A file that proved damaged may be repaired.
            self._begun[_text(source.name)] = 0 if source.name in self._unfinished else source.stamp
        return source, unread

    def begun(self) -> dict[str, int]:
        """Files of images of which some were taken, with stamps, or 0 for any; each is recorded once."""
        begun, self._begun = self._begun, {}
        return begun

    def finished(self, rows: int) -> list[ImageSource]:
        """Sources all of whose images are among the first rows, and were read; each is recorded once."""
        found = []
        while self._ends and self._ends[0][0] <= rows:
            _, source = self._ends.popleft()
            if source.name not in self._unfinished:
                found.append(source)
        return found

    def _wanted(self, source: ImageSource) -> Callable[[str], bool]:
        def wanted(path: str) -> bool:
            if not (source.whole or self._shard.has_path(path)):
                return False
            is_done = self._earlier.has_row(source, path)
            self._result.skipped += is_done
            return not is_done

        return wanted


@dataclass(frozen=True)
class _Part:
    """A file of an earlier job, and what the names in it are relative to.

    Attributes:
        path: The file.
        cwd: The folder that the job ran in; None in files of older versions, which do not record it.
        remote: The sources that are not of this machine's files.
    """

    path: Path
    cwd: str | None
    remote: frozenset[str]


class _Earlier:
    """What the files in a folder record of earlier jobs of a shard.

    Args:
        folder: The output folder.
        shard: The shard.
        about: What has to be equal.

    Attributes:
        next_number: Of the next file.
    """

    def __init__(self, folder: Path, shard: Shard, about: dict[str, Any]) -> None:
        import pyarrow
        import pyarrow.parquet

        self.next_number = 0
        self._finished: dict[str, int] = {}
        self._begun: dict[str, int] = {}
        self._parts_with: dict[str, set[_Part]] = {}  # by source, and by what it may be a file in
        self._cwd = str(Path.cwd())
        self._real = functools.lru_cache(1024)(os.path.realpath)
        self._done_in = functools.lru_cache(16)(self._read_done_in)
        for path in sorted(folder.glob("part-*.parquet")):
            match = _PART.fullmatch(path.name)
            if match is None:
                continue
            found = Shard(int(match[1] or 1), int(match[2] or 1))
            if found.count != shard.count:
                raise UserError(
                    f"output={folder}: holds predictions in {found.count} shards, not in {shard.count}"
                )
            if found.number != shard.number:
                continue
            try:
                metadata = pyarrow.parquet.read_schema(path).metadata or {}
                recorded = json.loads(metadata.get(_METADATA, b"{}"))
            except (pyarrow.ArrowException, ValueError) as error:
                raise UserError(
                    f"output={folder}: {path.name} is damaged; delete it to predict its images anew"
                ) from error
            for key, value in about.items():
                if recorded.get(key) != value:
                    what = "another model" if key == "model" else f"{key}={recorded.get(key)}"
                    raise UserError(f"output={folder}: holds predictions with {what}; choose another folder")
            if recorded.get("unread"):
                _take_out(path, recorded)
            part = _Part(path, recorded.get("cwd"), frozenset(recorded.get("remote", ())))
            for stamps, key in ((self._finished, "finished"), (self._begun, "begun")):
                for name, stamp in recorded.get(key, {}).items():
                    stamps.update(dict.fromkeys(self._recorded(name, name, part), stamp))
            self.next_number = max(self.next_number, int(match[3]) + 1)
            sources = pyarrow.parquet.read_table(path, columns=["source"])["source"]
            for source in sources.unique().to_pylist():
                above = map(os.path.dirname, self._recorded(source, source, part))
                for place in {*self._as_sources(source, part), *above}:
                    self._parts_with.setdefault(place, set()).add(part)

    def has_finished(self, source: ImageSource) -> bool:
        """Whether a source was read to its end, and is as it was.

        Raises:
            UserError: If it is a file of images that is another now; its rows are of those that it had.
        """
        place = self._place(source.name, source)
        stamp = self._finished.get(place, 0)
        known = stamp or self._begun.get(place, 0)
        if source.whole and known and source.stamp and known != source.stamp:
            raise UserError(f"images: {source.name} changed since it was predicted; choose another folder")
        return stamp != 0 and stamp == source.stamp

    def has_row(self, source: ImageSource, path: str) -> bool:
        """Whether an image has a row, of this source or, where it is a file, of any other."""
        if not self._parts_with:
            return False
        if source.whole:
            file = self._place(source.name, source)
            return _digest(_within(source.name, path)) in self._done_in(file, "file")
        place = self._place(path, source)
        folder, digest = os.path.dirname(place), _digest(place)  # noqa: PTH120
        return digest in self._done_in(folder, "folder") or digest in self._done_in("-", "input")

    def _read_done_in(self, place: str, kind: Literal["file", "folder", "input"]) -> set[bytes]:
        """Digests of the images that have rows: those of a file of images, a folder or standard input."""
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet

        done: set[bytes] = set()
        for part in self._parts_with.get(place, ()):
            rows = pyarrow.parquet.read_table(part.path, columns=["path", "source"])
            names = [
                name for name in rows["source"].unique().to_pylist() if place in self._as_sources(name, part)
            ]
            chosen = pyarrow.compute.is_in(rows["source"], value_set=pyarrow.array(names, pyarrow.string()))
            if kind == "folder":  # files that were addresses of their own
                chosen = pyarrow.compute.or_(chosen, pyarrow.compute.equal(rows["source"], rows["path"]))
            rows = rows.filter(chosen)
            for path, source in zip(rows["path"].to_pylist(), rows["source"].to_pylist(), strict=True):
                if kind == "file":
                    done.add(_digest(_within(source, path)))
                    continue
                for found in self._recorded(path, source, part):
                    if kind == "input" or os.path.dirname(found) == place:  # noqa: PTH120
                        done.add(_digest(found))
        return done

    def _place(self, name: str, source: ImageSource) -> str:
        """Where a name of this job leads: the same for all spellings, and all links to its folder."""
        return _remote_place(name) if source.remote else self._local_place(name, self._cwd)

    def _recorded(self, name: str, source: str, part: _Part) -> list[str]:
        """Where a name of a source leads that a file records; older versions did not say which of two."""
        if part.cwd is None:
            return [self._local_place(name, self._cwd), _remote_place(name)]
        return [_remote_place(name) if source in part.remote else self._local_place(name, part.cwd)]

    def _as_sources(self, source: str, part: _Part) -> set[str]:
        """A source that a file records, as a file of images or standard input, and as a folder."""
        if source == "-":
            return {"-"}
        places = set(self._recorded(source, source, part))
        if source not in part.remote:
            places.add(self._real(os.path.join(part.cwd or self._cwd, source)))  # noqa: PTH118
        return places

    def _local_place(self, name: str, cwd: str) -> str:
        folder, name = os.path.split(_text(name).rstrip("/") or "/")
        return os.path.normpath(os.path.join(self._real(os.path.join(cwd, folder)), name))  # noqa: PTH118


def _remote_place(name: str) -> str:
    """No place on this machine, whose paths are absolute."""
    return f"remote:{_text(name).rstrip('/')}"


def _within(source: str, path: str) -> str:
    """What distinguishes images of one file: ":cat.png" of "x.tar:cat.png", also in "y.parquet#3"."""
    return path.removeprefix(source if path.startswith(source) else source.rpartition("#")[0])


def _take_out(path: Path, recorded: dict[str, Any]) -> None:
    """Write a file again without the rows of what could not be read.

    Args:
        path: The file.
        recorded: Its metadata.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    kept = np.ones(table.num_rows, dtype=bool)
    kept[recorded["unread"]] = False
    metadata = {_METADATA: json.dumps({**recorded, "unread": []})}
    with _writing(path.parent), atomic_path(path) as temporary:
        table = table.filter(pyarrow.array(kept)).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, temporary, compression="zstd")


class _Writer:
    """Collects rows and writes them as a file.

    Args:
        folder: The output folder.
        shard: The shard.
        about: Metadata of each file.
        top_k: Number of classes in a row.
        number: Of the first file.
        labels: Of a multi-label classifier; none of others.
        targets: Of a regression; none of others.
    """

    def __init__(
        self,
        folder: Path,
        shard: Shard,
        about: dict[str, Any],
        top_k: int,
        number: int,
        labels: Sequence[str],
        targets: Sequence[str],
    ) -> None:
        self._folder = folder
        self._shard = shard
        self._about = about
        self._top_k = top_k
        self._number = number
        self._labels = labels
        self._targets = targets
        self._cwd = str(Path.cwd())
        self._rows: list[tuple[Prediction, ImageSource, bool]] = []

    @property
    def count(self) -> int:
        """Rows that no file has yet."""
        return len(self._rows)

    def add(self, prediction: Prediction, source: ImageSource, *, unread: bool) -> None:
        """Take a row; `unread` says that it holds until the image is tried again."""
        self._rows.append((prediction, source, unread))

    def write(self, finished: Sequence[ImageSource], begun: Mapping[str, int]) -> Path:
        """Write the rows as the next file.

        Args:
            finished: Sources that end with these rows or before.
            begun: Files of images that have some of these rows, with their stamps, or 0 for any.
        """
        import pyarrow
        import pyarrow.parquet

        predictions = [prediction for prediction, _, _ in self._rows]
        sources = [source for _, source, _ in self._rows]
        columns: dict[str, Any] = {"path": [_text(row.source) for row in predictions]}
        types = [("path", pyarrow.string())]
        if self._labels:
            shares = [dict(row.ranking) for row in predictions]
            columns["labels"] = [None if row.error else "|".join(row.labels) for row in predictions]
            types.append(("labels", pyarrow.string()))
        for name in self._labels:
            columns[f"p:{name}"] = [share.get(name) for share in shares]
            types.append((f"p:{name}", pyarrow.float64()))
        asked = {name: self._about[name] is not None for name in ("coverage", "reject")}
        numbers = number_columns(predictions, self._targets, coverage=asked["coverage"])
        columns |= numbers
        types += [(name, pyarrow.float64()) for name in numbers]
        for rank in range(0 if self._labels or self._targets else self._top_k):
            suffix = f"_{rank + 1}" if rank else ""
            ranked = [(None, None) if row.error else row.ranking[rank] for row in predictions]
            columns[f"label{suffix}"] = [label for label, _ in ranked]
            columns[f"probability{suffix}"] = [probability for _, probability in ranked]
            types += [(f"label{suffix}", pyarrow.string()), (f"probability{suffix}", pyarrow.float64())]
        columns |= uncertainty_columns(predictions, **asked | ({"coverage": False} if self._targets else {}))
        kinds = {"set": pyarrow.string(), "p_value": pyarrow.float64(), "rejected": pyarrow.bool_()}
        types += [(name, kind) for name, kind in kinds.items() if name in columns]
        columns["error"] = [None if row.error is None else _text(row.error) for row in predictions]
        columns["source"] = [_text(source.name) for source in sources]
        types += [("error", pyarrow.string()), ("source", pyarrow.string())]
        recorded = {
            **self._about,
            "cwd": self._cwd,
            "remote": sorted({_text(source.name) for source in (*sources, *finished) if source.remote}),
            "finished": {_text(source.name): source.stamp for source in finished},
            "begun": begun,
            "unread": [row for row, (_, _, unread) in enumerate(self._rows) if unread],
        }
        metadata = {_METADATA: json.dumps(recorded)}
        table = pyarrow.table(columns, schema=pyarrow.schema(types, metadata=metadata))
        path = self._folder / f"{_prefix(self._shard)}{self._number:05}.parquet"
        with _writing(self._folder), atomic_path(path) as temporary:
            pyarrow.parquet.write_table(table, temporary, compression="zstd")
        self._rows = []
        self._number += 1
        return path


def _prefix(shard: Shard) -> str:
    """How the names of a shard's files begin."""
    return "part-" if shard.count == 1 else f"part-{shard.number:05}-of-{shard.count:05}-"


def _text(path: str) -> str:
    r"""A path as valid UTF-8, which Parquet needs; other bytes become "\xff", so that no two become one."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _digest(path: str) -> bytes:
    return hashlib.blake2b(_text(path).encode(), digest_size=_DIGEST_BYTES).digest()


def fingerprint(classifier: Classifier) -> str:
    """What distinguishes one model from another: a hash of its file, whichever runtime opened it.

    Of a model that no file holds as it is, it is a hash of metadata and weights: of one from `from_model` or
    `from_members`, of one network of an ensemble, and of one that was changed in memory. Exports are told
    apart by their file alone.

    Raises:
        UserError: If the file was replaced since it was loaded, by a runtime that does not show the weights
            it has: the hash would be that of another model.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    path = classifier.path
    # Read before it is compared: it may be replaced at any moment.
    of_file = None if path is None or classifier._number is not None else _file_digest(path)
    if path is not None and of_file is not None and _has_weights_of(path, classifier):
        if classifier.export is not None or _has_description_of(path, classifier):
            return of_file
        digest.update(of_file.encode())
    elif classifier._members:
        for member in classifier._members:
            digest.update(fingerprint(member).encode())
    else:
        digest.update(_weights_digest(_weights(classifier)))
    digest.update(json.dumps(classifier.metadata(), sort_keys=True).encode())
    return digest.hexdigest()


def is_replaced(classifier: Classifier) -> bool:
    """Whether the file that a classifier was loaded from is another by now, or gone."""
    loaded = classifier._origin
    if loaded is None:
        return False
    now = Origin.of(loaded.path, runtime=loaded.runtime, device=loaded.device, threads=loaded.threads)
    return now != loaded


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _shows_weights(classifier: Classifier) -> bool:
    """Whether the weights in memory can be seen, and therefore changed."""
    return classifier.export is None and classifier.runtime.name == "torch"


def _has_weights_of(path: Path, classifier: Classifier) -> bool:
    """Whether a classifier has the weights of the file that it was loaded from.

    Raises:
        UserError: If the file was replaced, and the weights in memory cannot be seen.
    """
    if not _shows_weights(classifier):
        if is_replaced(classifier):
            raise UserError(f"model: {path} was replaced since it was loaded; load it again")
        return True
    file = read_model_file(path)
    stored = [file.tensors()] if classifier.ensemble == 1 else file.members()
    found = map(_weights, classifier.members)
    return list(map(_weights_digest, stored)) == list(map(_weights_digest, found))


def _has_description_of(path: Path, classifier: Classifier) -> bool:
    """Whether a model file has the metadata in memory, such as classes and temperature."""
    stored = Description.from_metadata(path, read_model_file(path).metadata)
    return stored.to_dict() == classifier._description().to_dict()


def _weights(classifier: Classifier) -> dict[str, NDArray[Any]]:
    """The weights of one network, as a model file would hold them; none where they cannot be seen."""
    if classifier.export is None and classifier.runtime.name == "native":
        return classifier._tensors_of_file()
    if not _shows_weights(classifier):
        return {}
    # Not the runtime's `tensors`, which refuses what cannot be saved but can predict.
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().contiguous().numpy()
        for name, tensor in classifier.model.stored().state_dict().items()
        if hasattr(tensor, "cpu")
    }


def _weights_digest(weights: Mapping[str, NDArray[Any]]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, array in sorted(weights.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output={folder}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    """Keep other jobs away from a shard; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    until = time.monotonic() + seconds
    with _writing(path.parent):
        opened = path.open("w")
    with opened as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise UserError(f"output={path.parent}: another job is writing this shard") from error
                time.sleep(0.5)
        yield
