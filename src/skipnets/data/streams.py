"""Images at any scale, one after another: folders, tar shards, Parquet files, and addresses of object stores.

Nothing lists what it has not come to yet: a folder of millions of files is read as its entries come. Images
come in sources (one folder without its subfolders, one tar file, one row group of a Parquet file), which are
what a job that was interrupted skips as a whole.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from skipnets.data.decoding import EXTRA_OF_SUFFIX, SUFFIXES, Source
from skipnets.errors import UserError, missing_extra, one_line

__all__ = [
    "SHARD_SUFFIXES",
    "ImageSource",
    "Shard",
    "UnlistedError",
    "check_addresses",
    "image_sources",
    "is_failed_read",
    "paths_on_standard_input",
    "unreadable_image",
]

_TAR = (".tar", ".tar.gz", ".tgz")
_PARQUET = (".parquet",)
# Files with these names hold images.
SHARD_SUFFIXES = (*_TAR, *_PARQUET)
_IMAGES = (*SUFFIXES, *EXTRA_OF_SUFFIX)
_IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "content", "data", "jpg", "jpeg", "png")
_ROWS_AT_ONCE = 64
# Why something cannot be read that every job finds so; other reasons may be of one moment or one machine.
_LASTING = (errno.EACCES, errno.EINVAL, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EPERM)

Kind = Literal["folder", "file", "other"]
Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Shard:
    """A part of all images: `Shard(3, 16)` is the third of sixteen.

    Files of folders are divided by a hash of their paths; tar files and row groups of Parquet files are not
    divided.

    Attributes:
        number: Counted from 1.
        count: How many parts there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "3/16".

        Raises:
            UserError: If it is nothing like it.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"shard={text}: must be like 3/16, the third part of sixteen")
        return cls(int(number), int(count))

    def has_path(self, path: str) -> bool:
        """Whether a file belongs to it."""
        return zlib.crc32(os.fsencode(path)) % self.count == self.number - 1

    def has_index(self, index: int) -> bool:
        """Whether the source with this index, among those that are not divided, belongs to it."""
        return index % self.count == self.number - 1


class UnlistedError(OSError):
    """What is in a folder or a Parquet file could not be listed, which may be so this time alone."""


@dataclass(frozen=True)
class ImageSource:
    """A source of images.

    Attributes:
        name: The folder, the tar file, or "file.parquet#3" for a row group.
        whole: Whether it goes to one shard as a whole.
        read: Yields path and image of those whose path is wanted; an OSError says why the source itself
            cannot be read, or not to its end. An `UnlistedError` says that another job may find images or
            sources there: shards that count on them would not be the same.
        stamp: Changes when an image is added, or the file is another; 0 where that is not known.
        remote: Whether it is not of this machine's files; its name is then relative to no folder.
    """

    name: str
    whole: bool
    read: Callable[[Wanted], Iterator[tuple[str, Source]]]
    stamp: int = 0
    remote: bool = False


def image_sources(addresses: Iterable[str]) -> Iterator[ImageSource]:
    """The sources at some addresses, in an order that depends on names alone.

    What is reached by several of the addresses, in whatever spelling, comes once. Links to one folder count
    as spellings of it; a link to a file is a file of its own.

    Args:
        addresses: Files, folders, patterns, "-" for paths on standard input, which come last, or addresses
            that fsspec opens, such as "s3://bucket/photos".

    Raises:
        UserError: If there is nothing at an address, or a Parquet file has no images; for addresses of this
            machine before the first source, see `check_addresses`.
    """
    addresses = [_without_scheme(address) for address in addresses]
    check_addresses(addresses)
    seen: set[object] = set()
    for address in addresses:
        if address == "-":
            continue
        if "://" in address:
            remote = _Remote(address)
            yield from (replace(source, remote=True) for source in _at(remote, remote.root, seen))
        else:
            for path in sorted(_matches(address)):  # shards count on their order
                yield from _at(_Local(), path, seen)
    if "-" in addresses:
        yield ImageSource("-", whole=False, read=lambda wanted: _from_standard_input(wanted, seen))


def check_addresses(addresses: Iterable[str]) -> None:
    """Check that there is something at each address of this machine, before anything slow begins.

    Raises:
        UserError: If not.
    """
    for address in map(_without_scheme, addresses):
        if address == "-" or "://" in address or next(_matches(address), None) is not None:
            continue
        if glob.has_magic(address):
            raise UserError(f"images: no file matches {address}")
        raise UserError(f"images: {address} does not exist (and no file matches it as a pattern)")


def _without_scheme(address: str) -> str:
    """A path of this machine instead of a "file://" address, as it is another spelling of it."""
    return address.removeprefix("file://")


def _matches(address: str) -> Iterator[str]:
    """The paths that an address means: itself, or what it matches as a pattern."""
    if os.path.lexists(address):
        return iter([address])
    return glob.iglob(address, recursive=True)  # noqa: PTH207 - absolute patterns work, too


class _Local:
    """Files of this machine."""

    def kind(self, path: str) -> Kind:
        """What is at a path; an OSError if nothing is."""
        mode = Path(path).stat().st_mode
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"

    def entries(self, folder: str) -> Iterator[tuple[str, Kind]]:
        """Paths in a folder, as they come, and what they are; hidden ones are passed over."""
        with os.scandir(folder) as scan:
            for entry in scan:
                if not entry.name.startswith("."):
                    try:
                        kind: Kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
                    except OSError:  # such as of a link to itself
                        kind = "other"
                    yield entry.path, kind

    def identity(self, folder: str) -> object:
        """The same for two paths to one folder."""
        status = Path(folder or os.curdir).stat()
        return status.st_dev, status.st_ino

    def split(self, path: str) -> tuple[str, str]:
        """Folder and name of a file."""
        return os.path.split(path)

    def stamp(self, path: str) -> int:
        """When the folder's entries, or the file, changed."""
        return Path(path).stat().st_mtime_ns

    def image(self, path: str) -> Source:
        return path

    def open(self, path: str) -> BinaryIO:
        return Path(path).open("rb")


class _Remote:
    """Files of an object store or another place that fsspec reaches.

    Args:
        address: Such as "s3://bucket/photos".
    """

    def __init__(self, address: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise missing_extra("scale", "fsspec") from None
        try:
            self._files, self.root = fsspec.core.url_to_fs(address)
            if not self._files.exists(self.root):
                raise UserError(f"images: {address} does not exist")
        except (ImportError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"images: {address} cannot be opened ({error})") from error

    def kind(self, path: str) -> Kind:
        return "folder" if self._files.isdir(path) else "file"

    def entries(self, folder: str) -> Iterator[tuple[str, Kind]]:
        """As of this machine; a store is asked for a folder at a time."""
        for entry in self._files.ls(folder, detail=True):
            path = str(entry["name"]).rstrip("/")
            if not path.rpartition("/")[2].startswith(".") and path != folder.rstrip("/"):
                yield path, "folder" if entry["type"] == "directory" else "file"

    def identity(self, folder: str) -> object:
        """The same for two paths to one folder; no other store has it."""
        return f"{self._files.protocol}:{folder.rstrip('/')}"

    def split(self, path: str) -> tuple[str, str]:
        """Folder and name of a file."""
        folder, _, name = path.rpartition("/")
        return folder, name

    def stamp(self, path: str) -> int:
        """When a file changed, in seconds, which is as fine as all stores record it.

        0 for a folder, as stores do not record when one changed, and where it is not known.
        """
        if self._files.isdir(path):
            return 0
        try:
            return int(self._files.modified(path).timestamp())
        except (NotImplementedError, AttributeError, KeyError):  # such as web servers
            return 0

    def image(self, path: str) -> Source:
        def fetch() -> bytes:
            try:
                return cast(bytes, self._files.cat_file(path))
            except FileNotFoundError:
                raise
            except Exception as error:  # each store's library has its own
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise OSError(errno.EIO, one_line(error)) from error

        return cast(BinaryIO, _Later(fetch))

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._files.open(path, "rb"))


class _Later:
    """A binary file whose content is fetched by the thread that reads it.

    Args:
        fetch: Returns the content; an OSError is the image's error.
    """

    def __init__(self, fetch: Callable[[], bytes]) -> None:
        self._fetch = fetch
        self._content: io.BytesIO | None = None

    def _opened(self) -> io.BytesIO:
        if self._content is None:
            self._content = io.BytesIO(self._fetch())
        return self._content

    def read(self, size: int = -1) -> bytes:
        return self._opened().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._opened().seek(offset, whence)

    def tell(self) -> int:
        return self._opened().tell()


def unreadable_image(reason: str) -> Source:
    """An image that cannot be read, for this reason."""

    def fail() -> bytes:
        raise OSError(reason)

    return cast(BinaryIO, _Later(fail))


def is_failed_read(error: BaseException | None) -> bool:
    """Whether a file could not be read, which may succeed another time, rather than that it is damaged."""
    # Pillow's errors about content are OSErrors, too: without a number, or of offsets that no file has.
    return isinstance(error, FileNotFoundError | TimeoutError | ConnectionError) or (
        isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    )


_Files = _Local | _Remote


def _at(files: _Files, path: str, seen: set[object]) -> Iterator[ImageSource]:
    """The sources at a path: a folder's own images first, then its shards and its folders.

    Args:
        files: Where it is.
        path: The file or folder; if it cannot be read, it is a source that says so.
        seen: What came before: folders by their identity, files by their `_key`.
    """
    kind: Kind = "other"
    failure = OSError(errno.EINVAL, "is not a regular file")
    try:
        try:
            kind = files.kind(path)
        except OSError as error:
            failure = error
        if kind == "folder":
            yield from _of_folder(files, path, seen)
        elif not _is_repeated(files, path, seen):
            yield from _of_file(files, path) if kind == "file" else [_unreadable(path, failure)]
    except OSError as error:
        yield _unreadable(path, error, is_folder=kind == "folder")


def _is_repeated(files: _Files, path: str, seen: set[object]) -> bool:
    """Whether a file came before, alone or with its folder; if not, it does now."""
    folder, name = files.split(path)
    identity = files.identity(folder)
    key = _key(identity, name)
    if key in seen or (identity in seen and _is_shown(name)):
        return True
    seen.add(key)
    return False


def _key(folder: object, name: str) -> bytes:
    """A file in little memory: there may be millions."""
    return hashlib.blake2b(repr((folder, name)).encode(), digest_size=16).digest()


def _is_shown(name: str) -> bool:
    """Whether a folder gives a file of this name as an image."""
    return name.lower().endswith(_IMAGES) and not name.startswith(".")


def _unreadable(path: str, error: OSError, *, is_folder: bool = False) -> ImageSource:
    """A source that says why it cannot be read; shard files stay whole, so that others keep their index.

    Where another job may find any number of sources, others have no index, which an `UnlistedError` says.
    """
    is_one = not is_folder and path.lower().endswith((*_TAR, *_IMAGES))
    is_unlisted = not is_one and error.errno not in _LASTING

    def read(_: Wanted) -> Iterator[tuple[str, Source]]:
        raise (UnlistedError if is_unlisted else OSError)(error.strerror or str(error))

    return ImageSource(path, whole=path.lower().endswith(SHARD_SUFFIXES) and not is_unlisted, read=read)


def _of_folder(files: _Files, path: str, seen: set[object]) -> Iterator[ImageSource]:
    identity = files.identity(path)
    if identity in seen:
        return
    seen.add(identity)
    stamp = files.stamp(path)
    yield ImageSource(
        path, whole=False, read=lambda wanted: _in_folder(files, path, wanted, seen), stamp=stamp
    )
    within = sorted(
        entry
        for entry, kind in files.entries(path)
        if kind == "folder" or entry.lower().endswith(SHARD_SUFFIXES)
    )
    for entry in within:
        yield from _at(files, entry, seen)


def _in_folder(files: _Files, folder: str, wanted: Wanted, seen: set[object]) -> Iterator[tuple[str, Source]]:
    try:
        identity = files.identity(folder)
        for path, kind in files.entries(folder):
            name = files.split(path)[1]
            if kind == "folder" or not _is_shown(name) or _key(identity, name) in seen:
                continue
            if wanted(path):
                yield path, files.image(path) if kind == "file" else unreadable_image("is not a regular file")
    except OSError as error:
        if error.errno in _LASTING:
            raise
        raise UnlistedError(error.strerror or str(error)) from error


def _of_file(files: _Files, path: str) -> Iterator[ImageSource]:
    if path.lower().endswith(_TAR):
        stamp = files.stamp(path)
        yield ImageSource(path, whole=True, read=lambda wanted: _in_tar(files, path, wanted), stamp=stamp)
    elif path.lower().endswith(_PARQUET):
        yield from _row_groups(files, path)
    else:
        yield ImageSource(
            path,
            whole=False,
            read=lambda wanted: iter([(path, files.image(path))] if wanted(path) else []),
            stamp=files.stamp(path),
        )


def paths_on_standard_input() -> Iterator[str]:
    """The lines of standard input that are not empty; names of files need not be valid UTF-8."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)  # streams that tests put in its place have none
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")
    for line in sys.stdin or ():
        if path := line.rstrip("\r\n"):
            yield path


def _from_standard_input(wanted: Wanted, seen: set[object]) -> Iterator[tuple[str, Source]]:
    for path in paths_on_standard_input():
        if not wanted(path):
            continue
        try:
            repeated = _is_repeated(_Local(), path, seen)
        except OSError:  # there is no such folder, as the row will say
            repeated = False
        if not repeated:
            yield path, path


def _in_tar(files: _Files, path: str, wanted: Wanted) -> Iterator[tuple[str, Source]]:
    """The images of a tar file (the layout of webdataset), read from front to back."""
    try:
        with files.open(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = f"{path}:{member.name}"
                if member.isfile() and member.name.lower().endswith(_IMAGES) and wanted(name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield name, content.read()
                tar.members = []  # type: ignore[attr-defined]  # which would grow by every file
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise OSError(f"is damaged from here on ({error})") from error


def _row_groups(files: _Files, path: str) -> Iterator[ImageSource]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("scale", "pyarrow") from None
    try:
        with files.open(path) as file:
            opened = pyarrow.parquet.ParquetFile(file)
            column = _image_column(opened.schema_arrow, path)
            groups = opened.num_row_groups
            firsts = [0]
            for group in range(groups):
                firsts.append(firsts[-1] + opened.metadata.row_group(group).num_rows)
    except pyarrow.ArrowException as error:
        yield _unreadable(path, OSError(errno.EINVAL, f"is not a readable Parquet file ({error})"))
        return
    stamp = files.stamp(path)
    for group in range(groups):

        def read(wanted: Wanted, group: int = group) -> Iterator[tuple[str, Source]]:
            return _in_row_group(files, path, column, group, firsts[group], wanted)

        yield ImageSource(f"{path}#{group}", whole=True, read=read, stamp=stamp)


def _image_column(schema: Any, path: str) -> str:
    """The column with encoded images: bytes, or a record with bytes, as Hugging Face's datasets write it."""
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    usual = [name for name in _IMAGE_COLUMNS if name in found]
    if len(found) != 1 and not usual:
        names = ", ".join(_IMAGE_COLUMNS[:4])
        raise UserError(f"images: {path} must have one column of image bytes, or one named {names}")
    return usual[0] if usual else found[0]


def _in_row_group(
    files: _Files, path: str, column: str, group: int, first: int, wanted: Wanted
) -> Iterator[tuple[str, Source]]:
    import pyarrow
    import pyarrow.parquet

    row = first
    try:
        with files.open(path) as file:
            opened = pyarrow.parquet.ParquetFile(file)
            for batch in opened.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                for value in batch.column(0):
                    name, row = f"{path}:{row}", row + 1
                    if wanted(name):
                        content = value.as_py()
                        content = content.get("bytes") if isinstance(content, dict) else content
                        yield (
                            name,
                            unreadable_image("has no image in this row") if content is None else content,
                        )
    except (pyarrow.ArrowException, OSError) as error:
        raise OSError(f"is damaged from here on ({error})") from error
